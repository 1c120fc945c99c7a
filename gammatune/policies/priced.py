"""What policies share that weigh a draft token against its price: the run's, or one that a cost ratio stands for."""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.errors import UserError
from gammatune.policies.base import Policy, require
from gammatune.records import RoundPrices


def assume_prices(cost_ratio: float, gamma: int) -> RoundPrices:
    """In draft steps: verification costs the same for every block."""
    bases = tuple(cost_ratio + drafted for drafted in range(gamma + 1))
    return RoundPrices(bases, (0.0,) * len(bases))


@dataclass
class Priced(Policy):
    """A policy that is told what rounds cost. cost_ratio: T_target / T_draft, assumed where no prices are given."""

    needs_prices: ClassVar[bool] = True

    cost_ratio: float = 10.0

    def __post_init__(self):
        require(self, "cost_ratio", self.cost_ratio > 0.0, "above 0")
        self.take_prices(assume_prices(self.cost_ratio, self.longest))
        super().__post_init__()

    @property
    def longest(self) -> int:
        """Most tokens that it ever drafts in a block."""
        raise NotImplementedError

    def take_prices(self, prices: RoundPrices) -> None:
        """Raises UserError for prices of shorter blocks than it may draft."""
        priced = len(prices.bases) - 1
        if priced < self.longest:
            raise UserError(
                f"{type(self).__name__} may draft {self.longest} tokens, but the longest block with a price has {priced}: "
                "lower its gamma."
            )
        self.prices = prices
        self.reset()

    def price(self, drafted: int, context: int) -> float:
        """Of a round that drafts so many tokens, with so many committed before it."""
        return self.prices.bases[drafted] + self.prices.slopes[drafted] * context
