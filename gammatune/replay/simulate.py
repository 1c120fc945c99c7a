"""Any policy over an acceptance table, round for round what a live run would log, without a model.

A round is looked up instead of computed: from answer position p, the drafter's next tokens match until the first mismatch,
and after that stands the recorded continuation of its own. Only times are missing: gammatune.replay.prices has prices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from sys import getrefcount

import numpy as np

from gammatune.errors import UserError
from gammatune.policies import Policy
from gammatune.policies.session import (
    LARGEST_GAMMA,
    PolicyError,
    PolicySession,
    check_going_on,
    check_plan,
    check_state,
    kept_round,
    kept_signals,
    policy_error,
)
from gammatune.records import Round, Signals
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.traces import UNKNOWN, Starts


@dataclass
class ReplayTurn:
    """One turn made ready for replay."""

    question_id: int
    turn: int
    prompt_tokens: int
    budget: int
    tokens: int
    forwards_by_proposer: list[int]  # draft forwards that a proposed token costs
    starts: Starts
    ids: list[int]  # of the answer; none where the table has none

    @property
    def forwards_per_token(self) -> int:
        """Draft forwards that a proposed token costs at most."""
        return max(self.forwards_by_proposer)


@dataclass(slots=True)
class Outcome:
    """What one block comes to. Reused: millions are looked up in a sweep."""

    drafted: int = 0
    accepted: int = 0
    made: int = 0  # tokens that the drafter made, a dropped one included
    stop: str = "length"
    beyond: bool = False  # the block left what is recorded; from there on the policy was not asked
    signals: Signals = field(default_factory=lambda: Signals.unwatched(0))


@dataclass
class Replay:
    """All rounds of one policy on one table, as columns [rounds]."""

    context: np.ndarray  # committed tokens before the round
    drafted: np.ndarray
    accepted: np.ndarray
    forwards: np.ndarray
    turn_ends: np.ndarray  # [turns], rounds up to and including each turn's last
    beyond: int = 0  # rounds that drafted past what the table holds
    logs: list[list[Round]] = field(default_factory=list)  # by turn, where asked for

    @property
    def rounds(self) -> int:
        return len(self.drafted)

    def sum_by_turn(self, values: np.ndarray) -> np.ndarray:
        """[rounds] to [turns]."""
        return np.add.reduceat(values, np.concatenate([[0], self.turn_ends[:-1]]))


@dataclass
class Columns:
    """Rounds while they are replayed."""

    context: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    beyond: int = 0


def prepare(table: AcceptanceTable) -> list[ReplayTurn]:
    """All turns, ready. Raises UserError where a match is unknown: fill_unknown decides those first."""
    if not table.complete:
        raise UserError("The match of some positions is unknown: use `gammatune headline`, which gives bounds.")
    return [prepare_turn(turn, table.forwards_by_proposer) for turn in table.turns]


def prepare_turn(turn: AcceptanceTurn, forwards_by_proposer: Sequence[int] = (1,)) -> ReplayTurn:
    return ReplayTurn(
        question_id=turn.question_id,
        turn=turn.turn,
        prompt_tokens=turn.prompt_tokens,
        budget=turn.budget,
        tokens=turn.tokens,
        forwards_by_proposer=list(forwards_by_proposer),
        starts=turn.starts(),
        ids=turn.output_ids.tolist(),
    )


def fill_unknown(table: AcceptanceTable, rate: float, seed: int = 0) -> AcceptanceTable:
    """The table with every unknown position decided: a match with probability rate (0 and 1 give the bounds)."""
    rng = np.random.default_rng(seed)
    turns = []
    for turn in table.turns:
        drawn = rng.random(turn.tokens) < rate
        match = np.where(turn.match == UNKNOWN, drawn, turn.match).astype(np.int8)
        turns.append(replace(turn, trace=replace(turn.trace, match=match)))
    return AcceptanceTable(turns, table.facts)


def replay(turns: list[ReplayTurn], policy: Policy, keep_rounds: bool = False) -> Replay:
    """Every round that a live run of this policy would log.

    The policy starts afresh and forgets at the boundaries that its `carry` names. keep_rounds: also build the Round records.
    Raises UserError where it needs signals that are not recorded, and PolicyError where a live run would.
    """
    session, columns, logs = PolicySession(policy), Columns(), []
    if any(turn.starts.signals is None for turn in turns) and session.watches_draft:
        name = type(policy).__name__
        raise UserError(f"{name} watches the draft, but this table has no draft signals: replay length-only policies on it.")
    if session.reads_text and not all(turn.ids for turn in turns):
        name = type(policy).__name__
        raise UserError(f"{name} reads the text, but this table has no ids: replay a policy that does not.")
    session.restart()
    for turn in turns:
        session.start(turn.question_id, turn.turn)
        session.begin(turn.prompt_tokens)
        log = [] if keep_rounds else None
        replay_turn(turn, policy, columns, log)
        columns.turn_ends.append(len(columns.drafted))
        logs.append(log)
    names = ("context", "drafted", "accepted", "forwards", "turn_ends")
    arrays = (np.array(values, dtype=np.int64) for values in attrgetter(*names)(columns))
    return Replay(*arrays, beyond=columns.beyond, logs=logs if keep_rounds else [])


def replay_turn(turn: ReplayTurn, policy: Policy, columns: Columns, log: list | None) -> None:
    """Append one turn's rounds to the columns. Raises PolicyError.

    This loop runs millions of times in a sweep: one Round is reused, methods are looked up once, and what PolicySession
    checks is checked in place.
    """
    context, drafted = columns.context.append, columns.drafted.append
    accepted, forwards = columns.accepted.append, columns.forwards.append
    finished, block, costs = Round(0, 0, 0, 0, 0, "length", 0), Outcome(), turn.forwards_by_proposer
    place, tokens, prompt, matches = 0, turn.tokens, turn.prompt_tokens, turn.starts.matches
    proposers, late, cost = turn.starts.proposer, turn.starts.late, costs[0]
    read = 0  # answer tokens of which it is known, or is never learned, whether the draft would have proposed them
    call, references = "plan", getrefcount(finished)
    try:
        plan, observe, oracle, reads_text = policy.plan, policy.observe, policy.oracle, policy.reads_text
        while place < tokens:
            if oracle:
                policy.foresee(min(matches[place], tokens - place - 1))
            call = "plan"
            planned = plan()
            if type(planned) is not int or not 0 <= planned <= LARGEST_GAMMA:
                planned = check_plan(policy, planned)
            if log is not None:
                call = "state"
                state = check_state(policy, policy.state())
            call = "keep_drafting"
            draft_block(turn, place, planned, policy, block)
            finished.planned = planned
            finished.context = prompt + place
            finished.drafted = finished.nodes = block.drafted
            finished.accepted = finished.emitted = block.accepted
            if proposers is not None:
                finished.proposer = proposers[place] if block.made else 0
                cost = costs[finished.proposer]
            finished.forwards = block.made * cost
            finished.stop = block.stop
            if reads_text and finished.forwards and late is not None:
                finished.caught_up = tuple(late[read:place])
                read = place + min(block.made, block.accepted + 1)
            elif reads_text:
                finished.caught_up = ()
            place += block.accepted
            if place < tokens:  # else the answer's last token was accepted: an end of sequence, which leaves no bonus
                place += 1
                finished.emitted += 1
            if reads_text:
                finished.tokens = tuple(turn.ids[place - finished.emitted : place])
            context(finished.context)
            drafted(block.drafted)
            accepted(block.accepted)
            forwards(finished.forwards)
            if block.beyond:
                columns.beyond += 1
            if log is not None:  # a copy, as it is before the policy gets hold of it, and with the state that no policy sees
                log.append(replace(finished, state=state))
            call = "observe"
            observe(finished)
            if getrefcount(finished) > references:
                raise kept_round(policy)
    except (PolicyError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise policy_error(policy, call, error) from error


def draft_block(turn: ReplayTurn, place: int, planned: int, policy: Policy, block: Outcome) -> None:
    """The block from a start, ended by the rules of records.Block: arithmetic where no token has to be asked about."""
    starts = turn.starts
    room = turn.budget - place - 1  # the last token that the budget allows is left to the target
    limit = planned if planned < room else room
    matches, reach = starts.matches[place], starts.reach[place]
    drafted = limit if limit < reach else reach
    stopped = 0  # tokens made when the policy said no
    block.beyond = starts.depth is not None and drafted > starts.depth[place]
    if policy.watches_draft or policy.watches_tokens:
        stopped = ask_policy(starts, place, drafted, policy, block)
        drafted = stopped or drafted
    block.made = drafted
    if stopped and policy.stop_token == "exclude":
        drafted -= 1
        block.stop = "policy"
    elif drafted == reach and starts.ends[place]:
        block.stop = "eos"
    elif drafted == planned:
        block.stop = "length"
    elif stopped:
        block.stop = "policy"
    else:
        block.stop = "budget" if drafted == limit else "drafter"
    block.drafted = drafted
    block.accepted = matches if matches < drafted else drafted


def ask_policy(starts: Starts, place: int, limit: int, policy: Policy, block: Outcome) -> int:
    """How many tokens were made when the policy said no; 0 where it never did, or where the recorded signals end first.

    Raises PolicyError where the policy keeps the Signals, which are reused.
    """
    keep, signals, matches, known = policy.keep_drafting, block.signals, starts.matches[place], starts.known[place]
    (top1, entropy, margin), ids = starts.signals or (None, None, None), starts.ids
    watched = policy.watches_draft
    if ids is None and not watched:  # no answer has ids: nothing is told, and nothing is missing
        known = limit
    at, references, stopped = starts.head[place], getrefcount(signals), 0
    for index in range(limit):
        if index >= known:
            block.beyond = True
            break
        if index == matches + 1:  # from here on the drafter follows its own wrong token
            at = starts.after[place] + index
        signals.index = index
        if ids is not None:
            signals.token = ids[at]
        if watched:
            signals.top1 = signals.chosen = top1[at]
            signals.entropy = entropy[at]
            signals.margin = margin[at]
        going_on = keep(signals)
        if going_on is not True and (going_on is False or not check_going_on(policy, going_on)):
            stopped = index + 1
            break
        at += 1
    if getrefcount(signals) > references:
        raise kept_signals(policy)
    return stopped
