"""From timed rounds to a price list: lines over the context that a few disturbed samples do not move. No torch."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import linprog

from gammatune.replay.prices import FREE, Drafting, Price, PriceList

DIGITS = 9


@dataclass
class Samples:
    """What a measurement leaves: one dict per round and one per prefill.

    rounds: length (of the prompt), context, watched, drafted, forwards, fed (tokens that the first draft step took),
    draft_ms, verify_ms, rest_ms. prefills: length, models ("target" or "both"), ms.
    """

    rounds: list[dict] = field(default_factory=list)
    prefills: list[dict] = field(default_factory=list)


def fit_prices(samples: Samples, facts: dict) -> PriceList:
    """Rounds of every block length from 0 drafted tokens on, blind and watched, and prefills of both kinds must be there."""
    rounds, prefills = pd.DataFrame(samples.rounds), pd.DataFrame(samples.prefills)
    rounds["size"], prefills["size"] = 1, prefills["length"]
    prefills["context"] = prefills["length"]
    verify = [fit_line(group, "verify_ms") for _, group in rounds.groupby("drafted", sort=True)]
    alone = prefills[prefills["models"] == "target"]
    drafting = rounds[rounds["forwards"] > 0]
    return PriceList(
        fit_drafting(drafting[~drafting["watched"]]),
        fit_drafting(drafting[drafting["watched"]]),
        verify,
        fit_line(rounds, "rest_ms"),
        fit_line(alone, "ms"),
        fit_line(prefills.drop(alone.index), "ms"),
        facts,
    )


def fit_drafting(rounds: pd.DataFrame) -> Drafting:
    """rounds: those with draft steps. One fit for all of a block: steps, steps by context, start, catch-up."""
    if rounds.empty:  # a drafter that is no model
        return Drafting(FREE)
    steps, milliseconds = rounds["forwards"].to_numpy(), rounds["draft_ms"].to_numpy()
    two = (rounds["fed"] > 1).to_numpy()
    columns = np.column_stack([steps, steps * spread_context(rounds), np.ones(len(rounds)), two])
    weights = fit_robustly(columns, milliseconds, sizes=steps)
    error = milliseconds - columns @ weights
    return Drafting(
        make_price(weights[0], weights[1], error / steps),
        make_price(weights[2], 0.0, error),
        make_price(weights[3], 0.0, error[two]),
    )


def fit_line(samples: pd.DataFrame, column: str) -> Price:
    """base + slope * context of one column of times. size: what a sample's error is in proportion to."""
    context, milliseconds = spread_context(samples), samples[column].to_numpy()
    columns = np.column_stack([np.ones(len(samples)), context])
    weights = fit_robustly(columns, milliseconds, sizes=samples["size"].to_numpy())
    return make_price(*weights, milliseconds - columns @ weights)


def spread_context(samples: pd.DataFrame) -> np.ndarray:
    """Contexts [n]; zeros where all prompts had one length, since a pass's own few tokens show no slope."""
    known = samples["length"].nunique() > 1
    return samples["context"].to_numpy() * float(known)


def fit_robustly(columns: np.ndarray, milliseconds: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Weights [w] >= 0 of columns [n, w] for times [n] with the least sum of |error| / sizes [n].

    Like a median, it does not follow a few disturbed samples. No weight is negative: nothing costs less than nothing, nor
    less after a longer context. Solved as a linear programme: error = over - under, both >= 0.
    """
    samples, weights = columns.shape
    parts = sparse.hstack([sparse.csr_array(columns), sparse.eye_array(samples), -sparse.eye_array(samples)])
    cost = np.concatenate([np.zeros(weights), 1 / sizes, 1 / sizes])
    return linprog(cost, A_eq=parts, b_eq=milliseconds, method="highs").x[:weights]


def make_price(base: float, slope: float, error: np.ndarray) -> Price:
    low, high = np.quantile(error, [0.25, 0.75]) if len(error) else (0.0, 0.0)
    return Price(*(round(float(number), DIGITS) for number in (base, slope, low, high)), samples=len(error))
