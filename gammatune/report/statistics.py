"""How sure a number is: intervals over questions, spread over repetitions, and warnings in words.

The two spreads answer different questions and stand side by side: the bootstrap says how much the choice of questions
matters, the repetitions say how steady the machine was.
"""

import numpy as np
import pandas as pd
from scipy import stats

from gammatune.report import metrics
from gammatune.runs.store import BASELINE, StoredRun

LEVEL = 0.95
RESAMPLES = 5000
SEED = 20250331
THROTTLED = 0.75
UNSTABLE = 0.10


def speedup_interval(questions: pd.DataFrame, baseline: pd.DataFrame) -> tuple[float, float]:
    """95 % paired bootstrap interval of `metrics.speedup`, questions resampled within their task.

    Both arms of a question are drawn together. NaN where no task has two questions to resample.
    """
    pairs = pd.DataFrame({"arm": metrics.question_speeds(questions), "base": metrics.question_speeds(baseline)}).dropna()
    tasks = [group[["arm", "base"]].to_numpy().T for _, group in pairs.groupby(level="task", sort=True)]
    return stratified_ratio_interval(tasks)


def tokens_per_second_interval(questions: pd.DataFrame) -> tuple[float, float]:
    """95 % bootstrap interval of `metrics.tokens_per_second`, questions resampled within their task."""
    speeds = metrics.question_speeds(questions)
    return stratified_ratio_interval(
        [
            np.stack([group, np.ones_like(group)])
            for group in (g.to_numpy() for _, g in speeds.groupby(level="task", sort=True))
        ]
    )


def stratified_ratio_interval(strata: list[np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of (sum of first rows / sum of second rows); strata are 2 x n arrays, resampled by column."""
    if all(stratum.shape[1] < 2 for stratum in strata):
        return float("nan"), float("nan")
    rng = np.random.default_rng(SEED)
    sums = sum(stratum.shape[1] * resampled_means(stratum, rng) for stratum in strata)
    return percentile_interval(sums[0] / sums[1])


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_means(stratum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of all rows, [rows, RESAMPLES], under a paired bootstrap over columns; one column has nothing to resample."""
    if stratum.shape[1] < 2:
        return np.repeat(stratum, RESAMPLES, axis=1)
    drawn = stats.bootstrap(
        tuple(stratum),
        stack_means,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        rng=rng,
    )
    return drawn.bootstrap_distribution


def stack_means(*rows: np.ndarray, axis: int) -> np.ndarray:
    return np.stack([row.mean(axis=axis) for row in rows])


def repetition_interval(values: list[float]) -> tuple[float, float]:
    """95 % Student-t interval of the mean over repetitions of a whole run. NaN below two repetitions."""
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def speedup_per_repetition(questions: pd.DataFrame, baseline: pd.DataFrame) -> list[float]:
    """`metrics.speedup` of each repetition by itself, in order."""
    base = dict(iter(baseline.groupby("repetition")))
    return [metrics.speedup(rows, base[repetition]) for repetition, rows in questions.groupby("repetition")]


def relative_spread(values) -> float:
    """(largest - smallest) / mean."""
    return float(np.ptp(values) / np.mean(values))


def stability_warnings(run: StoredRun) -> list[str]:
    """One sentence per reason to distrust the timings of this run; empty where it was steady."""
    found = [warn_of_repetitions(label, rows) for label, rows in run.questions.groupby("label", sort=False)]
    found.append(warn_of_drift(run.turns[run.turns["label"] == BASELINE]))
    found.extend([warn_of_load(run), warn_of_throttling(run.machine)])
    return [sentence for sentence in found if sentence]


def warn_of_repetitions(label: str, questions: pd.DataFrame) -> str:
    speeds = questions.groupby("repetition").apply(metrics.tokens_per_second, include_groups=False)
    spread = relative_spread(speeds)
    if spread <= UNSTABLE:
        return ""
    return f"{label}: tokens/s differed by {spread:.0%} between repetitions; repeat the run on a quiet machine."


def warn_of_drift(turns: pd.DataFrame) -> str:
    """Decoding speed of the baseline without prefill, first against second half of each task, whose prompts are alike."""
    changes = [drift(rows) for _, rows in turns.groupby("task") if len(rows) >= 4]
    change = float(np.mean(changes)) if changes else 0.0
    if abs(change) <= UNSTABLE:
        return ""
    way = "faster" if change > 0 else "slower"
    return f"{BASELINE}: decoding became {abs(change):.0%} {way} from the first to the second half of the tasks."


def drift(turns: pd.DataFrame) -> float:
    """(second half - first half) / mean, of tokens per decoding time."""
    halves = turns.iloc[: len(turns) // 2], turns.iloc[len(turns) // 2 :]
    first, second = (half["tokens"].sum() / (half["wall_ms"] - half["prefill_ms"]).sum() for half in halves)
    return (second - first) / np.mean([first, second])


def warn_of_load(run: StoredRun) -> str:
    """Median load while the run worked, more than one process above the cores that it may fill."""
    cores = run.arms[0].provenance.get("cores")
    if not isinstance(cores, int) or run.machine.empty:
        return ""
    load = run.machine["load"].median()
    if load <= cores + 1:
        return ""
    return f"The machine was shared while the run worked (median load {load:.1f} on {cores} cores): timings may be too slow."


def warn_of_throttling(machine: pd.DataFrame) -> str:
    """Share of samples in which the GPU ran under three quarters of its highest clock."""
    if "sm_mhz" not in machine or machine.empty:
        return ""
    slow = float((machine["sm_mhz"] < THROTTLED * machine["sm_max_mhz"]).mean())
    return f"The GPU ran under {THROTTLED:.0%} of its clock in {slow:.0%} of the samples." if slow > UNSTABLE else ""
