"""Policies that plan what they are told, for warming up and for measuring prices. No config names them."""

from dataclasses import dataclass, field
from typing import ClassVar

from gammatune.policies.base import Policy


@dataclass
class Probe(Policy):
    """Plans the gammas of a list, one per round."""

    gammas: list[int] = field(default_factory=list)

    def reset(self) -> None:
        self.following = iter(self.gammas)

    def plan(self) -> int:
        return next(self.following)


@dataclass
class WatchingProbe(Probe):
    """The same, and reads the draft's signals for every token, as a policy does that may stop a block."""

    watches_draft: ClassVar[bool] = True
