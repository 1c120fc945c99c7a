"""How sure a measured number is: intervals over questions, and spread over repetitions.

The two spreads answer different questions: the bootstrap says how much the choice of questions matters, the repetitions say
how steady the machine was.
"""

import numpy as np
import pandas as pd
from scipy import stats

from gammatune.report import metrics
from gammatune.studies.bootstrap import LEVEL, stratified_ratio_interval


def speedup_interval(questions: pd.DataFrame, baseline: pd.DataFrame) -> tuple[float, float]:
    """95 % paired bootstrap interval of `metrics.speedup`, questions resampled within their task.

    Both arms of a question are drawn together. NaN where no task has two questions to resample.
    """
    pairs = pd.DataFrame({"arm": metrics.question_speeds(questions), "base": metrics.question_speeds(baseline)}).dropna()
    tasks = [group[["arm", "base"]].to_numpy().T for _, group in pairs.groupby(level="task", sort=True)]
    return stratified_ratio_interval(tasks)


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
