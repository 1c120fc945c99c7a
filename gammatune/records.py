"""What the steps of decoding hand to each other, and the log of an answer that everything downstream reads.

An answer is made in rounds: the drafter proposes `drafted` tokens (the policy planned some number), the target verifies them
in one forward pass and accepts a prefix, and one more token comes from the target itself: the correction of the first
rejected token, or the bonus token after a full acceptance. Autoregressive decoding is the same record with
`planned = drafted = accepted = 0`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from math import nan
from typing import TYPE_CHECKING

from gammatune.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

SCHEMA = 2
SIGNAL_DIGITS = 4

# planned length reached | the policy stopped | an end of sequence was drafted | no more tokens allowed | nothing to propose
STOP_REASONS = ("length", "policy", "eos", "budget", "drafter")
FINISHES = ("eos", "length")  # of an answer: it ended the sequence, or was as long as allowed


@dataclass(slots=True)
class Signals:
    """What the drafter reports about one proposed token. Valid during `keep_drafting` only.

    All are rounded to four decimals, live and recorded, so that the order of floating-point sums decides nothing. A policy
    that watches tokens alone is told the index and the token; the rest is NaN.
    """

    index: int  # place in the block, from 0
    top1: float  # probability of the drafter's first choice, at temperature 1
    entropy: float  # of its distribution at temperature 1, in nats
    margin: float  # top-1 minus top-2 probability
    chosen: float  # probability of the drafted token under the distribution it was drawn from (greedy: top1)
    token: int = -1  # the drafted token, set by the block; -1 where a replay does not know it

    @classmethod
    def rounded(cls, index: int, top1: float, entropy: float, margin: float, chosen: float) -> "Signals":
        return cls(index, *(round(value, SIGNAL_DIGITS) for value in (top1, entropy, margin, chosen)))

    @classmethod
    def unwatched(cls, index: int) -> "Signals":
        return cls(index, nan, nan, nan, nan)


@dataclass(slots=True)
class Block:
    """A block while it is drafted, and the rules that end it: planned length, budget, end of sequence, the policy's stop.

    The decoding loop, transformers' generate and the replay all end their blocks by these rules.
    """

    planned: int  # gamma that the policy asked for
    room: int  # tokens that may be drafted: the last one that the budget allows is left to the target
    ends: frozenset[int] = frozenset()  # ids that end the sequence
    keep: Callable[[Signals], bool] | None = None  # a watching policy's keep_drafting; None where nothing watches
    exclude: bool = False  # whether the token at which `keep` said no is dropped rather than verified
    tokens_alone: bool = False  # whether `keep` is told which token was drafted, and nothing else about it
    catches_up: bool = False  # whether the policy learns from tokens that a draft model reads late
    drafted: int = 0  # tokens in the block
    ended: bool = False  # the last of them ends the sequence
    stopped: bool = False  # the policy stopped after the last of them
    dropped: bool = False  # the policy stopped, and the token it stopped at was dropped

    @property
    def limit(self) -> int:
        """Tokens that the block may get."""
        return min(self.planned, self.room)

    @property
    def watched(self) -> bool:
        """Whether `add` needs the drafter's signals."""
        return self.keep is not None and not self.tokens_alone

    @property
    def named(self) -> bool:
        """Whether `add` needs the token."""
        return self.keep is not None

    def add(self, token: int | None, signals: Signals | None = None) -> bool:
        """Take one drafted token; whether to draft another. token: None where reading it would wait for the device.

        A dropped token is not part of the block: `drafted` does not count it.
        """
        if self.keep is not None and not self.ask(token, signals):
            if self.exclude:
                self.dropped = True
                return False
            self.stopped = True
        self.drafted += 1
        self.ended = token in self.ends
        return not (self.ended or self.stopped) and self.drafted < self.limit

    def ask(self, token: int, signals: Signals | None) -> bool:
        """The policy's word; the signals are not kept here, since the policy must not keep them either."""
        if self.tokens_alone:
            signals = Signals.unwatched(self.drafted)
        signals.token = token
        return self.keep(signals)

    def cut(self, tokens: list[int]) -> None:
        """End the block after the first end of sequence among its tokens, which were perhaps not read while drafting."""
        for place, token in enumerate(tokens):
            if token in self.ends:
                self.drafted, self.ended = place + 1, True
                return

    @property
    def stop(self) -> str:
        """Why drafting ended, one of STOP_REASONS."""
        if self.ended:
            return "eos"
        if self.dropped or (self.stopped and self.drafted < self.planned):
            return "policy"
        if self.drafted == self.planned:
            return "length"
        return "budget" if self.drafted == self.limit else "drafter"


@dataclass(slots=True)
class Proposal:
    """What a drafter proposes for one round."""

    tokens: "torch.Tensor"  # [k], target ids, on the device
    q: "torch.Tensor | None" = None  # [k, V], what each was drawn from; None where the drafter is deterministic
    parents: "torch.Tensor | None" = None  # [k], index of the node before each, -1 for a root; None for a chain
    forwards: int = 0  # forward passes of a draft model that it took
    peaks: "torch.Tensor | None" = None  # [forwards], finite where the distribution drawn from is; None without forwards
    caught_up: "torch.Tensor | None" = None  # [c], 1 where a draft model, reading late, would have proposed the text's token
    proposer: int = 0  # who of several drafters made it, by its place in their list


@dataclass(slots=True)
class Verdict:
    """What the target makes of a proposal."""

    tokens: list[int]  # [k], the proposed tokens, on the host
    path: list[int]  # accepted nodes in order; in a chain 0, 1, ..., accepted - 1
    next_token: int  # the target's own token after them
    nonfinite: int | None = None  # the first distribution that is no numbers: the draft's steps, then the target's rows
    caught_up: tuple[bool, ...] = ()  # the proposal's, on the host


@dataclass(slots=True)
class Round:
    """One block and its verification."""

    planned: int  # gamma that the policy asked for
    drafted: int  # tokens sent to the target, up to and including a drafted end of sequence
    accepted: int  # drafted tokens that were accepted, bonus excluded
    emitted: int  # accepted + 1, or accepted where an accepted end of sequence leaves no bonus token
    forwards: int  # draft forward passes spent; a token that the policy dropped costs one
    stop: str  # why drafting ended, one of STOP_REASONS
    context: int  # committed tokens before the round
    draft_ms: float = 0.0  # milliseconds of proposing, the policy's own time excluded
    verify_ms: float = 0.0  # milliseconds of the target's forward and of judging
    policy_ms: float = 0.0  # milliseconds of all calls into the policy
    state: dict = field(default_factory=dict)  # the policy's numbers when it planned this round
    nodes: int | None = None  # tokens verified; equal to drafted in a chain, more in a tree
    row: int = 0  # row of the batch
    proposer: int = 0  # who of several drafters proposed the block, by its place in their list; 0 where none did
    # Shown to a policy that reads the text, and not logged: an answer's ids stand beside its rounds
    tokens: tuple[int, ...] = ()  # ids that were emitted
    caught_up: tuple[bool, ...] = ()  # whether the draft would have proposed each of the last tokens before the round

    def __post_init__(self):
        if self.nodes is None:
            self.nodes = self.drafted

    @property
    def cut(self) -> bool:
        """Whether the end of the sequence or the token budget, not the policy, decided how many tokens were drafted."""
        return self.stop in ("eos", "budget")

    def counts(self) -> tuple:
        """Everything that does not depend on the clock, for comparing two runs of the same policy."""
        state = tuple(sorted(self.state.items()))
        return self.planned, self.drafted, self.accepted, self.emitted, self.stop, self.context, self.proposer, state


ROUND_FIELDS = tuple(f.name for f in fields(Round) if f.name not in ("tokens", "caught_up"))


@dataclass(frozen=True)
class RoundPrices:
    """What a round costs by how many tokens it drafts, each a line over the context. The unit is any, the same for all."""

    bases: tuple[float, ...]  # [n], of a round that drafts 0, 1, ..., n - 1 tokens
    slopes: tuple[float, ...]  # [n], what each committed token adds


class NewerFileError(UserError):
    """A file or line that a newer gammatune wrote."""


def refuse_newer(schema: int, where, remedy: str = "update gammatune to read it", known: int = SCHEMA) -> None:
    """Raises NewerFileError, naming the file or line `where`, when its schema number is above the highest that we know."""
    if schema > known:
        raise NewerFileError(
            f"{where} was written by a newer gammatune (schema {schema}, this one reads up to {known}): {remedy}."
        )


@dataclass
class TurnLog:
    """One answered prompt: who, what came out, how long it took, and every round."""

    question_id: int
    category: str
    task: str
    turn: int  # which of the question's prompts, from 0
    prompt_tokens: int
    output_ids: list[int]  # generated ids, a final end of sequence included
    finish: str  # one of FINISHES
    prefill_ms: float  # before the first round: the prompt through the target, and through the drafter where one is used
    wall_ms: float  # the whole turn with prefill, without tokenisation
    rounds: list[Round]
    repetition: int = 0
    policy_after: dict = field(default_factory=dict)  # state after the last round; an interrupted run goes on from it

    def to_json(self) -> str:
        """One JSON line; rounds are stored as columns (`planned: [..], drafted: [..], ...`)."""
        record = {name: value for name, value in asdict(self).items() if name != "rounds"}
        columns = {name: [getattr(r, name) for r in self.rounds] for name in ROUND_FIELDS}
        return json.dumps({"schema": SCHEMA, **record, "rounds": columns}, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes, where: str = "the turn log", remedy: str = "write it again") -> "TurnLog":
        """Inverse of to_json. Raises UserError, naming `where`, for a newer schema or a line that no decoding loop wrote."""
        try:
            record = json.loads(line)
            schema = record.pop("schema")
            refuse_newer(schema, where)
            columns = record.pop("rounds")
            if schema == 1:
                columns |= {"forwards": columns["draft_forwards"], "nodes": columns["drafted"]}
                columns["row"] = [0] * len(columns["drafted"])
            columns.setdefault("proposer", [0] * len(columns["drafted"]))  # added when there were several drafters to name
            rows = zip(*(columns[name] for name in ROUND_FIELDS), strict=True)
            turn = cls(**record, rounds=[Round(*row) for row in rows])
            fault = find_fault(turn)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} is damaged ({type(error).__name__}): {remedy}.") from error
        if fault:
            raise UserError(f"{where} is damaged ({fault}): {remedy}.")
        turn.category, turn.task = one_line(turn.category), one_line(turn.task)
        return turn


MOST = 2**31 - 1  # of anything counted
LONGEST_MS = 1e12
SLACK_MS = 1.0  # the device's clock may differ from the host's, by which the policy's own time is taken off a draft's


def is_count(value) -> bool:
    return type(value) is int and 0 <= value <= MOST


def is_time(value, least: float = 0.0) -> bool:
    return type(value) in (int, float) and least <= value <= LONGEST_MS  # false for NaN


def are_numbers(state) -> bool:
    """Whether it is what a policy may report of itself."""
    return isinstance(state, dict) and all(isinstance(value, int | float) for value in state.values())


def find_fault(turn: TurnLog) -> str:
    """What no decoding loop could have logged, "" where everything could: types, ranges, and sums that must agree."""
    counts = (turn.turn, turn.prompt_tokens, turn.repetition, *turn.output_ids)
    if type(turn.question_id) is not int or not all(map(is_count, counts)):
        return "a number is out of range"
    if not (isinstance(turn.category, str) and isinstance(turn.task, str) and turn.finish in FINISHES):
        return "the category, task or finish is none"
    if not (is_time(turn.prefill_ms) and is_time(turn.wall_ms) and turn.wall_ms > 0 and are_numbers(turn.policy_after)):
        return "a time or the policy's state is none"
    place = turn.prompt_tokens
    for number, r in enumerate(turn.rounds, start=1):
        counted = (r.planned, r.drafted, r.accepted, r.emitted, r.forwards, r.context, r.nodes, r.row, r.proposer)
        if not all(map(is_count, counted)) or r.stop not in STOP_REASONS or not are_numbers(r.state):
            return f"round {number} holds a value that is none"
        if not (is_time(r.draft_ms, -SLACK_MS) and is_time(r.verify_ms) and is_time(r.policy_ms)):
            return f"a time of round {number} is none"
        if not (r.accepted <= r.drafted <= min(r.planned, r.nodes) and r.emitted >= 1 and 0 <= r.emitted - r.accepted <= 1):
            return f"the tokens of round {number} do not add up"
        if r.context != place:
            return f"round {number} begins elsewhere than the one before ended"
        place += r.emitted
    if place - turn.prompt_tokens != len(turn.output_ids) or not turn.rounds:
        return f"the rounds of question {turn.question_id} do not add up"
    return ""
