"""The same gamma in every round; gamma 0 is the target alone."""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Policy, require


@dataclass
class Autoregressive(Policy):
    """No draft: every round is a plain target step. The baseline of every speedup."""

    name: ClassVar[str] = "ar"
    title: ClassVar[str] = "autoregressive"
    colour: ClassVar[str] = "#000000"
    drafts: ClassVar[bool] = False

    def plan(self) -> int:
        return 0


@dataclass
class Fixed(Policy):
    """gamma tokens per round, whatever happens (Leviathan et al. 2023, arXiv 2211.17192)."""

    name: ClassVar[str] = "fixed"
    title: ClassVar[str] = "fixed"
    colour: ClassVar[str] = "#8a8f98"
    marker: ClassVar[str] = "s"
    grid: ClassVar[dict[str, tuple]] = {"gamma": (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24)}

    gamma: int = 5

    def __post_init__(self):
        super().__post_init__()
        require(self, "gamma", self.gamma >= 0, "0 or more")

    def plan(self) -> int:
        return self.gamma
