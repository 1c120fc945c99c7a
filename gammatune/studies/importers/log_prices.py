"""What rounds cost where a log was made: a price list out of the wall times of its turns, by regression."""

from dataclasses import dataclass

import numpy as np

from gammatune.errors import UserError
from gammatune.replay.prices import Drafting, Price, PriceList
from gammatune.studies.bootstrap import percentile_interval
from gammatune.studies.importers.rounds import LoggedTurn

RESAMPLES, SEED = 1000, 0
BLOCKS = 25  # block lengths that get the one price of a verification


@dataclass
class Line:
    """A least-squares fit of wall times in ms, each coefficient with its 95 % interval [low, high] over turns."""

    coefficients: np.ndarray  # [columns]
    intervals: np.ndarray  # [columns, 2]
    explained: float  # R2

    def describe(self, place: int) -> dict:
        low, high = self.intervals[place]
        return {"ms": float(self.coefficients[place]), "low": float(low), "high": float(high)}


def fit_line(columns: list[list[float]], ms: list[float]) -> Line:
    """Of ms [n] on the columns and a constant, which comes first. Intervals by resampling turns."""
    x, y = np.column_stack([np.ones(len(ms)), *columns]), np.array(ms)
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(len(y), size=len(y)) for _ in range(RESAMPLES)]
    found = np.array([np.linalg.lstsq(x[drawn], y[drawn], rcond=None)[0] for drawn in draws])  # [RESAMPLES, columns]
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    spread = ((y - y.mean()) ** 2).sum()
    explained = 1 - ((y - x @ best) ** 2).sum() / spread if spread else 0.0
    return Line(best, np.array([percentile_interval(each) for each in found.T]), float(explained))


def refuse_dependent(columns: list[list[int]], why: str) -> None:
    """Raises UserError where the costs of columns could be shared out in any way, which no interval shows."""
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(columns[0])), *columns])) <= len(columns):
        raise UserError(f"{why}, so their times do not tell what each costs: use --cost-ratio.")


def fit_log_prices(turns: list[LoggedTurn], drafts: list[list[int]], plain: list[LoggedTurn], source: dict) -> PriceList:
    """Prices of the machine that wrote the logs. drafts: drafted tokens of each round of each turn. plain: the target alone.

    wall = a + rounds * T_verify + drafted tokens * T_draft, and of the target alone wall = b + tokens * T_target. A block's
    length has no price of its own in verification, nor has the context: a turn's one time cannot tell them.
    Raises UserError where a log has no times, where its counts cannot tell one cost from another, or where a step would
    cost nothing or less.
    """
    for each, name in ((turns, "The log"), (plain, "The log of the target alone")):
        if any(turn.seconds is None for turn in each) or len(each) < 10:
            raise UserError(f"{name} has no wall time for ten turns or more, so no prices follow from it: use --cost-ratio.")
    if any(length > 1 for turn in plain for length in turn.lengths):
        raise UserError(
            "The log of the target alone has rounds of several tokens, which only a draft makes: give another one."
        )
    counts = [[len(d) for d in drafts], [sum(d) for d in drafts]]
    tokens = [[turn.tokens for turn in plain]]
    refuse_dependent(counts, "All turns have rounds and drafted tokens in one proportion, as those of one fixed gamma")
    refuse_dependent(tokens, "All turns of the target alone have equally many tokens")
    spoken = fit_line(counts, [turn.seconds * 1e3 for turn in turns])
    alone = fit_line(tokens, [turn.seconds * 1e3 for turn in plain])
    prices = {"T_verify": spoken.describe(1), "T_draft": spoken.describe(2), "T_target": alone.describe(1)}
    for name, found in prices.items():
        if found["low"] <= 0:
            raise UserError(
                f"The wall times of the logs do not tell {name} (95 % from {found['low']:.3g} to {found['high']:.3g} ms): "
                "use --cost-ratio, or logs with more turns."
            )
    draft, verify, target = (Price(prices[name]["ms"]) for name in ("T_draft", "T_verify", "T_target"))
    facts = {"unit": "ms", "from": "wall times of a log, by regression", "prices_95": prices}
    facts |= {"explained": {"drafted": spoken.explained, "target alone": alone.explained}, "turns": len(turns), **source}
    return PriceList(
        blind=Drafting(draft),
        watched=Drafting(draft),
        verify=[target] + [verify] * (BLOCKS - 1),
        prefill_target=Price(max(alone.coefficients[0], 0.0)),
        prefill_both=Price(max(spoken.coefficients[0], 0.0)),
        facts=facts,
    )
