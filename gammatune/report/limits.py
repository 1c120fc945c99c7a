"""What limits speculation in a run: prices of its own rounds, acceptance, and the acceptance from which drafting pays.

Drafting one token pays where (1 + a) T(1) > T(2) + T_draft: a round emits 1 + a tokens for a verification of two and a draft
step, a plain step emits one. So the break-even acceptance is a = (T(2) + T_draft) / T(1) - 1.
"""

from dataclasses import dataclass

import pandas as pd

from gammatune.runs.store import BASELINE, StoredRun


@dataclass
class Limits:
    """Medians over a run's rounds, in units of a plain target step."""

    target_ms: float  # a plain target step
    draft: float  # a draft step; 0 for a drafter that is no model
    verify: float  # verification of two tokens
    acceptance: float  # how often the first drafted token is accepted

    @property
    def break_even(self) -> float:
        """Acceptance of a single drafted token from which drafting it pays."""
        return self.verify + self.draft - 1

    def sentence(self) -> str:
        parts = (
            f"a plain step of the target takes {self.target_ms:.1f} ms, a draft step {self.draft:.2f} of that, and "
            f"verifying two tokens {self.verify:.2f}"
        )
        needed = f"drafting one token pays from {self.break_even:.0%} acceptance on, and {self.acceptance:.0%} are accepted"
        if self.break_even >= 1:
            needed = "so no acceptance makes drafting pay"
        return f"What limits it: {parts}; {needed}."


def measure_limits(run: StoredRun) -> Limits | None:
    """None where the run has no plain or no drafted rounds to measure."""
    rounds = run.rounds
    plain = rounds[rounds["label"] == BASELINE]["verify_ms"]
    drafted = rounds[rounds["drafted"] > 0]
    if plain.empty or drafted.empty:
        return None
    verify = price_of_two(drafted)
    steps = drafted[drafted["forwards"] > 0]
    step = (steps["draft_ms"] / steps["forwards"]).median() if len(steps) else 0.0
    if not (target := float(plain.median())):  # a run whose rounds were not timed
        return None
    return Limits(target, float(step) / target, verify / target, float((drafted["accepted"] > 0).mean()))


def price_of_two(drafted: pd.DataFrame) -> float:
    """Milliseconds of verifying two tokens: of rounds that drafted one, else of those that drafted least."""
    shortest = drafted["drafted"].min()
    return float(drafted[drafted["drafted"] == shortest]["verify_ms"].median())


def explain_limits(run: StoredRun, results: pd.DataFrame) -> str:
    """A sentence where no arm is surely faster than the target alone, else "". results: the run's table of metrics."""
    overall = results[(results["task"] == "overall") & (results["label"] != BASELINE)]
    if not run.has_baseline or overall.empty or (overall["speedup_low"].fillna(overall["speedup"]) > 1).any():
        return ""
    limits = measure_limits(run)
    return f"Speculation does not surely pay here. {limits.sentence()}" if limits else ""
