"""Does replay give what the run did? Every logged round beside the one that the run's own acceptance table predicts."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.session import PolicyError, PolicySession
from gammatune.records import Round
from gammatune.replay.prices import PRICES_FILE, PriceList, hand_prices, read_prices
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.runs.store import BASELINE, REWRITTEN, StoredArm, StoredRun
from gammatune.studies.study import TABLE_FILE

# Signals are rounded to four decimals; a sum that lands on the other side of a rounding edge moves one by 1e-4
STATE_TOLERANCE = 2e-4


@dataclass
class ReplayCheck:
    """What came of comparing the rounds of all drafting arms."""

    #: arms whose rounds were compared
    arms: int = 0
    #: rounds of the logs and of the replay, a pair counted once
    rounds: int = 0
    #: rounds that differ, or that only one of the two has
    differing: int = 0
    #: where the first of them is
    first: str = ""
    #: turns with other tokens than the table (near-ties), and what follows from them; not compared
    other_text: int = 0
    #: arms that could not be replayed, each with the reason
    unchecked: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        left_out = f" {self.other_text} turns with a near-tie were left out." if self.other_text else ""
        if self.unchecked:
            left_out += f" Not checked: {'; '.join(self.unchecked)}."
        if not self.arms:
            return f"Replay: no drafting arm was checked.{left_out}"
        what = f"{self.rounds:,} rounds of {self.arms} drafting arms"
        if not self.differing:
            return f"Replay: all {what} are identical to their replay from the acceptance table.{left_out}"
        return f"Replay: {self.differing:,} of {what} differ from their replay, first {self.first}.{left_out}"


def replay_sentence(run: StoredRun) -> str:
    """What belongs under the tables of a run. Raises UserError for a damaged table."""
    check = check_replay(run)
    if check is None:
        return "Replay: not checked, since this run has no acceptance table (it sampled, or acceptance=false)."
    return check.sentence()


@lru_cache(maxsize=4)
def check_replay(run: StoredRun) -> ReplayCheck | None:
    """Compare every drafting arm; None where the run has no table. Raises UserError for a damaged table."""
    path = run.path / TABLE_FILE
    if not path.exists():
        return None
    table = read_table(path)
    asked = {(turn.question_id, turn.turn) for arm in run.arms for turn in arm.turns}
    if not asked <= {(turn.question_id, turn.turn) for turn in table.turns}:
        raise UserError(f"{path} lacks questions of this run: {REWRITTEN}.")
    turns, check = prepare(table), ReplayCheck()
    prices = run.path / PRICES_FILE
    curve = read_prices(prices) if prices.exists() else None
    for arm in run.arms:
        if arm.policy == BASELINE:
            continue
        policy = build_policy(arm)
        if policy is None:
            check.unchecked.append(f"{arm.label} (policy {arm.policy} is not known here, or not with these settings)")
            continue
        try:
            if reason := name_missing(policy, table, curve):
                check.unchecked.append(f"{arm.label} ({reason})")
                continue
            if curve is not None:
                hand_prices(policy, curve, table.forwards_per_token)
            logs = replay(turns, policy, keep_rounds=True).logs
        except PolicyError as error:
            check.unchecked.append(f"{arm.label} ({str(error).removesuffix('.')})")
            continue
        check.arms += 1
        compare_arm(arm, table, logs, check)
    return check


def name_missing(policy: Policy, table: AcceptanceTable, curve: PriceList | None) -> str:
    """What a replay of the policy lacks, "" where nothing. Raises PolicyError."""
    session = PolicySession(policy)
    if session.needs_prices and curve is None:
        return f"{PRICES_FILE}, by which it decided, is missing"
    if session.reads_text and any(turn.trace.ids is None for turn in table.turns):
        return "the table does not name rejected tokens, of which it was told"
    return ""


def build_policy(arm: StoredArm) -> Policy | None:
    """None for a policy that this installation does not have, or whose fields are others than when the run was made."""
    try:
        return POLICIES.options[arm.policy](**arm.settings)
    except (KeyError, TypeError, ValueError, UserError):
        return None


def compare_arm(arm: StoredArm, table: AcceptanceTable, logs: list[list[Round]], check: ReplayCheck) -> None:
    """Turn by turn. After another text, the question's later turns answer another prompt, and a policy that carries its
    state over turns is in another one for the rest of that pass.
    """
    expected = {(turn.question_id, turn.turn): (turn, log) for turn, log in zip(table.turns, logs, strict=True)}
    carried, strayed = arm.settings.get("carry", "turn") != "turn", set()
    for logged in arm.turns:
        turn, log = expected[logged.question_id, logged.turn]
        touched = (logged.repetition, None if carried else logged.question_id)
        if touched in strayed or logged.prompt_tokens != turn.prompt_tokens or logged.output_ids != turn.output_ids.tolist():
            strayed.add(touched)
            check.other_text += 1
            continue
        # zip_longest: a round that only the log or only the replay has is a difference too
        wrong = [place for place, pair in enumerate(zip_longest(logged.rounds, log)) if not same_round(*pair)]
        if wrong and not check.first:
            check.first = f"{arm.label}, question {logged.question_id}, turn {logged.turn}, round {wrong[0]}"
        check.rounds += max(len(logged.rounds), len(log))
        check.differing += len(wrong)


def same_round(logged: Round | None, replayed: Round | None) -> bool:
    """Everything but the clock: counts and stop reason exactly, the state's numbers within STATE_TOLERANCE."""
    if logged is None or replayed is None:
        return False
    (*counts, state), (*expected, predicted) = logged.counts(), replayed.counts()
    close = all(
        name == other and math.isclose(value, wanted, abs_tol=STATE_TOLERANCE)
        for (name, value), (other, wanted) in zip(state, predicted, strict=False)
    )
    return counts == expected and len(state) == len(predicted) and close
