"""From the rounds that an engine logged to what is known of the drafter at each position of its answers.

Every importer of a log by rounds ends here: it reads its own format into `LoggedTurn`, and this module makes the table.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gammatune.config import task_of
from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.records import MOST, Round
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.studies.bounds import estimate_match_rate
from gammatune.traces import MATCH, MISMATCH, UNKNOWN, TextTrace

MAX_NEW_TOKENS = 1024


@dataclass
class LoggedTurn:
    """One answer of a log."""

    question_id: int
    category: str
    turn: int  # which of the question's prompts, from 0
    lengths: list[int]  # emitted tokens of each round; their sum is the answer's length
    drafted: list[int] | None = None  # drafted tokens of each round; None where a schedule tells them
    text: str = ""  # the answer
    seconds: float | None = None  # wall time of the turn
    prompt_tokens: int = 0  # 0 where the log does not say
    failed: bool = False  # whether generation broke off; nothing else counts then

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def __str__(self) -> str:
        return f"turn {self.turn + 1} of question {self.question_id}"


@dataclass
class Schedule:
    """The rule that set the draft lengths of a log. As text: name and gamma, as an arm is labelled."""

    name: str  # of the policy, as configs call it
    policy: Policy
    max_new_tokens: int = MAX_NEW_TOKENS  # token budget of a turn

    def __str__(self) -> str:
        gamma = getattr(self.policy, "gamma", None)
        return self.name if gamma is None else f"{self.name}-{gamma}"


def schedule_names() -> list[str]:
    """Policies whose draft lengths follow from the accepted lengths of the turn alone."""
    made = {name: policy() for name, policy in POLICIES.items() if name != "ar"}
    asked = [n for n, p in made.items() if p.watches_draft or p.watches_tokens or p.reads_text or p.needs_prices]
    return [n for n, p in made.items() if not (n in asked or p.oracle) and p.carry == "turn"]


def build_schedule(name: str, gamma: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS) -> Schedule:
    """Raises UserError for an unknown policy, one whose draft lengths a log does not tell, or a gamma that it cannot have.

    Spec-Bench's SpS with transformers 4.37 (its main branch) is hf_heuristic with gamma 5, the default here.
    """
    choices = f"choose one of {', '.join(schedule_names())}"
    if name not in POLICIES:
        raise UserError(f"--schedule {name} is not known: {choices}.")
    if POLICIES[name]().watches_draft:
        raise UserError(f"--schedule {name} watches the draft, so a log does not tell its draft lengths: {choices}.")
    if name not in schedule_names():
        raise UserError(f"The draft lengths of --schedule {name} cannot be told from the rounds of a turn alone: {choices}.")
    if gamma is not None and not hasattr(POLICIES[name].rule, "gamma"):
        raise UserError(f"--schedule {name} has no gamma: leave --gamma out.")
    if not 1 <= max_new_tokens <= MOST:
        raise UserError(f"--max-new-tokens {max_new_tokens} must lie between 1 and {MOST}.")
    return Schedule(name, POLICIES[name](**({} if gamma is None else {"gamma": gamma})), max_new_tokens)


def schedule_drafts(logged: LoggedTurn, schedule: Schedule, where: object) -> list[int]:
    """Drafted tokens of each round as the schedule sets them. Raises UserError, naming the log `where`, for a turn over its
    budget, and where a round accepted more than was planned.
    """
    policy, drafts, budget, place = schedule.policy, [], schedule.max_new_tokens, 0
    if logged.tokens > budget:
        raise UserError(
            f"{str(logged).capitalize()} in {where} has {logged.tokens} tokens, more than {budget}: give the "
            "token budget of that run with --max-new-tokens."
        )
    policy.reset()
    for number, emitted in enumerate(logged.lengths, start=1):
        planned, accepted = policy.plan(), emitted - 1
        if accepted > planned:
            raise UserError(
                f"{where} contradicts the schedule {schedule}: round {number} of {logged} accepted {accepted} draft tokens, "
                f"more than the {planned} planned; name the schedule of that run with --schedule and --gamma."
            )
        drafts.append(min(planned, budget - place - 1))
        stop = "length" if drafts[-1] == planned else "budget"
        policy.observe(Round(planned, drafts[-1], accepted, emitted, drafts[-1], stop, place))
        place += emitted
    return drafts


def find_matches(lengths: list[int], drafted: list[int]) -> np.ndarray:
    """[tokens] int8 from the emitted and drafted tokens of each round.

    Accepted tokens match; the token after a partly accepted round does not; the token after a fully accepted round is
    unknown, since the draft was not asked there. So is the last token: within the round's budget the draft may have ended
    the sequence itself, which transformers does not count as accepted.
    """
    match = []
    for emitted, asked in zip(lengths, drafted, strict=True):
        match += [MATCH] * (emitted - 1) + [UNKNOWN if emitted - 1 == asked else MISMATCH]
    match[-1] = UNKNOWN
    return np.array(match, np.int8)


def make_turn(logged: LoggedTurn, match: np.ndarray, budget: int) -> AcceptanceTurn:
    """A turn of the table that holds matches only: no ids, no signals. budget: tokens that the answer could have."""
    none = np.zeros(0, np.int8)
    return AcceptanceTurn(
        question_id=logged.question_id,
        category=logged.category,
        task=task_of(logged.category),
        turn=logged.turn,
        prompt_tokens=logged.prompt_tokens,
        budget=budget,
        finish="length" if len(match) == budget else "eos",
        output_ids=none,
        trace=TextTrace(match, signals=None, steps=none.astype(np.int8), ended=none.astype(bool), continuations=None),
    )


def build_table(
    turns: list[LoggedTurn], matches: list[np.ndarray], schedule: str, budget: int, facts: dict
) -> AcceptanceTable:
    """The table of a log. schedule: what set its draft lengths, in words. facts: where it comes from, and what else to keep.

    Raises UserError where nothing is known.
    """
    table = AcceptanceTable([make_turn(turn, match, budget) for turn, match in zip(turns, matches, strict=True)])
    rounds = sum(len(turn.lengths) for turn in turns)
    table.facts = {**facts, "schedule": schedule, "max_new_tokens": budget, "rounds": rounds}
    table.facts["estimated match rate"] = estimate_match_rate(table)
    return table


@dataclass
class SecondLog:
    """A log of the same pair and questions that tells accepted tokens only, since a confidence rule ended its blocks."""

    turns: list[LoggedTurn]
    name: str  # of its file
    most: int  # tokens that a block could have at most

    def matches(self, logged: LoggedTurn) -> np.ndarray:
        """[tokens] int8. Accepted tokens match. After a round without one comes a mismatch: a block's first token is drafted
        in any case. After any other round the block may have ended by the rule, so the next token is unknown.
        """
        match = []
        for emitted in logged.lengths:
            if emitted - 1 > self.most:
                raise UserError(
                    f"{str(logged).capitalize()} in {self.name} accepted {emitted - 1} tokens in one round, more than "
                    f"{self.most}: give the longest block of that run with --second-most."
                )
            match += [MATCH] * (emitted - 1) + [MISMATCH if emitted == 1 else UNKNOWN]
        match[-1] = UNKNOWN
        return np.array(match, np.int8)


@dataclass
class Joined:
    """What a second log added."""

    shared: int = 0  # positions that stand in both logs after the same text
    same_turns: int = 0  # turns with equal texts
    learned: int = 0  # positions that the first log left unknown
    compared: int = 0  # positions whose match both logs tell
    contradictions: int = 0  # those where they disagree, which stay as the first has them


def join_second(turns: list[LoggedTurn], matches: list[np.ndarray], second: SecondLog) -> Joined:
    """Fill unknown positions of `matches`, in place, from a second log as far as its answers are the same.

    Raises UserError where the logs have no question in common.
    """
    others = {(turn.question_id, turn.turn): turn for turn in second.turns if not turn.failed}
    joined, parted = Joined(), set()  # questions whose earlier turns differ: another prompt from there on
    for turn, match in zip(turns, matches, strict=True):
        other = others.get((turn.question_id, turn.turn))
        if other is None or turn.question_id in parted:
            continue
        same = shared_tokens(turn, other)
        if same < turn.tokens or turn.text != other.text:
            parted.add(turn.question_id)
        else:
            joined.same_turns += 1
        theirs, ours = second.matches(other)[:same], match[:same]
        missing = (ours == UNKNOWN) & (theirs != UNKNOWN)
        both = (ours != UNKNOWN) & (theirs != UNKNOWN)
        joined.compared += int(both.sum())
        joined.contradictions += int((both & (ours != theirs)).sum())
        joined.learned += int(missing.sum())
        joined.shared += same
        ours[missing] = theirs[missing]
    if not joined.shared:
        raise UserError(
            f"{second.name} answers no question as the first log does: give two logs of one pair and question set."
        )
    return joined


def shared_tokens(one: LoggedTurn, other: LoggedTurn) -> int:
    """Leading positions at which both answers surely have the same token after the same text.

    All of equal texts. Of others, as many as there are whole words before they part: a word is a token or more.
    """
    if one.text == other.text:
        return one.tokens if one.tokens == other.tokens else 0
    same = os.path.commonprefix([one.text, other.text])
    return min(max(len(same.split()) - 1, 0), one.tokens, other.tokens)


def refuse_unmatched(turns: Iterable[LoggedTurn], where: object) -> None:
    """Raises UserError for a log without a single accepted token."""
    if all(length == 1 for turn in turns for length in turn.lengths):
        raise UserError(f"No round of {where} accepted a draft token: give the file of a run with a draft model.")
