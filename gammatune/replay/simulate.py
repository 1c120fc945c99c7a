"""Any policy over an acceptance table, round for round what a live run would log, without a model.

A round is looked up instead of computed: from answer position p, the draft's next tokens match until the first mismatch, and
behind that stands the recorded tail of its own continuation. Only times are missing: gammatune.replay.prices has prices.
"""

from array import array
from dataclasses import dataclass, field, replace

import numpy as np

from gammatune.errors import UserError
from gammatune.policies import DraftSignal, Policy
from gammatune.records import Round
from gammatune.replay.table import MISMATCH, UNKNOWN, AcceptanceTable, AcceptanceTurn

NEVER = 1 << 30


@dataclass
class Walk:
    """One turn made ready for replay. n tokens; lists are indexed by answer position.

    matches[p]: draft tokens in a row, from p on, that the target accepts. For a mismatch at p: ends_after[p], after how many
    drafted tokens, the wrong one included, the draft ends the sequence (a large number where it does not); tail_at[p], where
    its tail begins in the tail signals; tail_steps[p], how long it is. ends_after has one more item, for the place behind
    the answer: 0 where the answer ended the sequence, since no block goes further.
    """

    question_id: int
    prompt_tokens: int
    budget: int
    tokens: int
    matches: list[int]
    ends_after: list[int]
    tail_at: list[int]
    tail_steps: list[int]
    signals: tuple[array, ...] | None
    tails: tuple[array, ...] | None


@dataclass
class Block:
    """What a policy's question leads to: tokens drafted and accepted, forwards spent, why drafting ended."""

    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    stop: str = "length"
    signal: DraftSignal = field(default_factory=lambda: DraftSignal(0, 0.0, 0.0, 0.0, 0.0))


@dataclass
class Replay:
    """All rounds of one policy on one table, as columns [rounds]; turn_ends: rounds up to and including each turn's last.

    context: committed tokens before the round. beyond: rounds that drafted past what the table holds; there the policy was
    not asked, and the block went on to its planned length.
    """

    context: np.ndarray
    drafted: np.ndarray
    accepted: np.ndarray
    forwards: np.ndarray
    turn_ends: np.ndarray
    beyond: int = 0
    logs: list[list[Round]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.drafted)

    def sum_by_turn(self, values: np.ndarray) -> np.ndarray:
        """[rounds] to [turns]."""
        return np.add.reduceat(values, np.concatenate([[0], self.turn_ends[:-1]]))


def prepare(table: AcceptanceTable) -> list[Walk]:
    """Walks of all turns. Raises UserError where a match is unknown: fill_unknown decides those first."""
    if not table.complete:
        raise UserError("The match of some positions is unknown: use `python -m gammatune headline`, which gives bounds.")
    return [prepare_turn(turn) for turn in table.turns]


def prepare_turn(turn: AcceptanceTurn) -> Walk:
    wrong = np.flatnonzero(turn.match == MISMATCH)
    places = np.arange(turn.tokens)
    following = np.append(wrong, turn.tokens)[np.searchsorted(wrong, places)]
    ends, tail_at, steps = np.full(turn.tokens + 1, NEVER), np.zeros(turn.tokens, int), np.zeros(turn.tokens, int)
    ends[turn.tokens] = 0 if turn.finish == "eos" else NEVER
    if len(turn.tail_steps):
        lengths = turn.tail_steps.astype(int)
        ends[wrong] = np.where(turn.tail_ended, lengths + 1, NEVER)
        tail_at[wrong], steps[wrong] = np.cumsum(lengths) - lengths, lengths
    return Walk(
        question_id=turn.question_id,
        prompt_tokens=turn.prompt_tokens,
        budget=turn.budget,
        tokens=turn.tokens,
        matches=(following - places).tolist(),
        ends_after=ends.tolist(),
        tail_at=tail_at.tolist(),
        tail_steps=steps.tolist(),
        signals=as_arrays(turn.signals),
        tails=as_arrays(turn.tails),
    )


def as_arrays(signals) -> tuple[array, ...] | None:
    """top1, entropy, margin as arrays whose items are plain floats."""
    if signals is None:
        return None
    return tuple(array("d", values) for values in (signals.top1, signals.entropy, signals.margin))


def fill_unknown(table: AcceptanceTable, rate: float, seed: int = 0) -> AcceptanceTable:
    """The table with every unknown position decided: a match with probability rate (0 and 1 give the bounds)."""
    rng = np.random.default_rng(seed)
    turns = []
    for turn in table.turns:
        drawn = rng.random(turn.tokens) < rate
        turns.append(replace(turn, match=np.where(turn.match == UNKNOWN, drawn, turn.match).astype(np.int8)))
    return AcceptanceTable(turns, table.facts)


def replay(walks: list[Walk], policy: Policy, keep_rounds: bool = False) -> Replay:
    """Every round that a live run of this policy would log. Raises UserError where it needs signals that are not recorded.

    The policy starts afresh and forgets at the boundaries that its `carry` names. keep_rounds: also build the Round records.
    """
    if policy.watches_draft and any(walk.signals is None for walk in walks):
        name = type(policy).__name__
        raise UserError(f"{name} watches the draft, but this table has no draft signals: replay length-only policies on it.")
    policy.reset()
    context, drafted, accepted, forwards, ends, logs = [], [], [], [], [], []
    columns, beyond, question = (context, drafted, accepted, forwards), 0, None
    for walk in walks:
        if policy.carry == "turn" or (policy.carry == "question" and walk.question_id != question):
            policy.reset()
        question = walk.question_id
        log = [] if keep_rounds else None
        beyond += replay_turn(walk, policy, columns, log)
        ends.append(len(drafted))
        logs.append(log)
    arrays = (np.array(column, dtype=np.int64) for column in (*columns, ends))
    return Replay(*arrays, beyond=beyond, logs=logs if keep_rounds else [])


def replay_turn(walk: Walk, policy: Policy, columns: tuple, log: list | None) -> int:
    """Append one turn's rounds to the columns; returns how many of them left the table.

    This loop runs millions of times in a sweep: one Round is reused, and methods are looked up once.
    """
    plan, observe = policy.plan, policy.observe
    context, drafted, accepted, forwards = (column.append for column in columns)
    finished, block, foresight = Round(0, 0, 0, 0, 0, "length", 0), Block(), policy.oracle
    place, beyond, tokens, prompt = 0, 0, walk.tokens, walk.prompt_tokens
    while place < tokens:
        if foresight:
            policy.foresee(min(walk.matches[place], tokens - place - 1))
        planned = plan()
        if log is not None:
            finished = Round(0, 0, 0, 0, 0, "length", 0, state=policy.state())
            log.append(finished)
        finished.planned = planned
        beyond += propose(walk, place, planned, policy, block)
        finished.context = prompt + place
        finished.drafted = block.drafted
        finished.accepted = finished.emitted = block.accepted
        finished.draft_forwards = block.forwards
        finished.stop = block.stop
        place += block.accepted
        if place < tokens:
            place += 1
            finished.emitted += 1
        context(finished.context)
        drafted(block.drafted)
        accepted(block.accepted)
        forwards(block.forwards)
        observe(finished)
    return beyond


def propose(walk: Walk, place: int, planned: int, policy: Policy, block: Block) -> int:
    """A block, cut where the policy stops it, the draft ends the sequence or the budget does.

    1 where the policy could not be asked because the table ends, else 0.
    """
    room = walk.budget - place - 1
    gamma = planned if planned < room else room
    matches = walk.matches[place]
    end = matches + walk.ends_after[place + matches]
    drafted, asked, unknown = gamma if gamma < end else end, 0, 0
    if policy.watches_draft:
        asked, unknown = ask_policy(walk, place, drafted, policy, block.signal)
        drafted = asked or drafted
    block.forwards = drafted
    if asked and policy.stop_token == "exclude":
        drafted -= 1
        block.stop = "policy"
    elif drafted == end:
        block.stop = "eos"
    else:
        block.stop = "length" if drafted == planned else "policy" if asked else "budget"
    block.drafted = drafted
    block.accepted = matches if matches < drafted else drafted
    return unknown


def ask_policy(walk: Walk, place: int, limit: int, policy: Policy, signal: DraftSignal) -> tuple[int, int]:
    """(how many tokens were drafted when the policy said no, 0 where it never did; 1 where the table ended first)."""
    keep, matches = policy.keep_drafting, walk.matches[place]
    top1, entropy, margin = walk.signals
    at = place
    for index in range(limit):
        if index == matches + 1:
            reach = place + matches
            at = walk.tail_at[reach]
            known = at + walk.tail_steps[reach]
            top1, entropy, margin = walk.tails
        if index > matches and at >= known:
            return 0, 1
        signal.index = index
        signal.top1 = signal.chosen = top1[at]
        signal.entropy = entropy[at]
        signal.margin = margin[at]
        if not keep(signal):
            return index + 1, 0
        at += 1
    return 0, 0
