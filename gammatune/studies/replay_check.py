"""Does replay say what the run did? Every logged round beside the one that the run's own acceptance table predicts."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

from gammatune.policies import POLICIES
from gammatune.records import Round
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.runs.store import Arm, StoredRun

TABLE_FILE = "acceptance.parquet"
# Signals are rounded to four decimals; a sum that lands on the other side of a rounding edge moves one by 1e-4
STATE_TOLERANCE = 2e-4


@dataclass
class ReplayCheck:
    """Rounds compared, and where the first one differs."""

    arms: int = 0
    rounds: int = 0
    differing: int = 0
    first: str = ""
    other_text: int = 0  # turns with other tokens than the table (near-ties)
    foreign: list[str] = field(default_factory=list)  # labels of arms whose policy's class is not known here

    def sentence(self) -> str:
        skipped = f" {self.other_text} turns with a near-tie were left out." if self.other_text else ""
        if self.foreign:
            skipped += f" Left out, since their policy is not installed here: {', '.join(self.foreign)}."
        what = f"{self.rounds:,} rounds of {self.arms} drafting arms"
        if not self.differing:
            return f"Replay: all {what} are identical to their replay from the acceptance table.{skipped}"
        return f"Replay: {self.differing:,} of {what} differ from their replay, first {self.first}.{skipped}"


@lru_cache(maxsize=4)
def check_replay(run: StoredRun) -> ReplayCheck | None:
    """Compare every drafting arm; None where the run has no table. Raises UserError for a damaged table."""
    path = run.path / TABLE_FILE
    if not path.exists():
        return None
    table = read_table(path)
    walks, check = prepare(table), ReplayCheck()
    for arm in run.arms:
        if arm.policy not in POLICIES.options:
            check.foreign.append(arm.label)
        elif arm.policy != "ar":
            check.arms += 1
            logs = replay(walks, POLICIES.options[arm.policy](**arm.settings), keep_rounds=True).logs
            compare_arm(arm, table, logs, check)
    return check


def compare_arm(arm: Arm, table: AcceptanceTable, logs: list[list[Round]], check: ReplayCheck) -> None:
    """Turn by turn. After another text, the question's later turns answer another prompt, and a policy that carries its
    state over turns is in another one for the rest of that pass.
    """
    expected = {(turn.question_id, turn.turn): (turn, log) for turn, log in zip(table.turns, logs, strict=True)}
    carried, strayed = arm.settings.get("carry", "turn") != "turn", set()
    for logged in arm.turns:
        turn, log = expected[logged.question_id, logged.turn]
        reach = (logged.repetition, None if carried else logged.question_id)
        if reach in strayed or logged.prompt_tokens != turn.prompt_tokens or logged.output_ids != turn.output_ids.tolist():
            strayed.add(reach)
            check.other_text += 1
            continue
        check.rounds += len(logged.rounds)
        wrong = [place for place, pair in enumerate(zip(logged.rounds, log, strict=False)) if not same_round(*pair)]
        if wrong and not check.first:
            check.first = f"{arm.label}, question {logged.question_id}, turn {logged.turn}, round {wrong[0]}"
        check.differing += len(wrong)


def same_round(logged: Round, replayed: Round) -> bool:
    """Everything but the clock: counts and stop reason exactly, the state's numbers within STATE_TOLERANCE."""
    (*counts, state), (*expected, predicted) = logged.counts(), replayed.counts()
    close = all(
        name == other and math.isclose(value, wanted, abs_tol=STATE_TOLERANCE)
        for (name, value), (other, wanted) in zip(state, predicted, strict=False)
    )
    return counts == expected and len(state) == len(predicted) and close
