"""How sure a ratio of mean speeds is: a paired bootstrap over questions, drawn within their task."""

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 5000
SEED = 20250331


def stratified_ratio_interval(strata: list[np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of (sum of first rows / sum of second rows); strata are 2 x n arrays, resampled by column.

    NaN where no stratum has two columns to resample.
    """
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
        lambda *rows, axis: np.stack([row.mean(axis=axis) for row in rows]),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        rng=rng,
    )
    return drawn.bootstrap_distribution


def resample_within(rows: np.ndarray, task: np.ndarray) -> dict[str, np.ndarray]:
    """Task -> sums of all rows [rows, questions] over resampled questions [rows, RESAMPLES].

    One draw serves every row, so that two rows of a ratio meet the same questions.
    """
    rng = np.random.default_rng(SEED)
    strata = {name: rows[:, task == name] for name in np.unique(task)}
    return {name: each.shape[1] * resampled_means(each, rng) for name, each in strata.items()}


def relative_spread(values) -> float:
    """(largest - smallest) / mean."""
    return float(np.ptp(values) / np.mean(values))
