"""SVIP: stop where the draft's entropy makes an acceptance doubtful (Zhang et al. 2024, arXiv 2411.18462).

The chance of acceptance is at least 1 - sqrt(factor * H), with H the draft's entropy in nats at temperature 1. Drafting ends
after a token for which

    sqrt(factor * H) > threshold

That token is verified. Two forms are in use: the released code (Geralt-Targaryen/SVIP, vanilla-sd/eval_specbench.py) has
factor 0.15 and threshold 0.3, which is H > 0.6; the paper's equation 7 has no factor, which with its 0.3 is H > 0.09, a
stricter rule.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.fixed import Fixed


@dataclass
class SVIP(Fixed):
    """The released rule. factor: of the entropy. threshold: of the root. gamma: most tokens in a block (40 in the code)."""

    name: ClassVar[str] = "svip"
    title: ClassVar[str] = "SVIP"
    colour: ClassVar[str] = "#6c33cc"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"threshold": (0.1, 0.2, 0.3, 0.45, 0.6)}

    gamma: int = 40
    factor: float = 0.15
    threshold: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        require(self, "factor", self.factor > 0.0, "above 0")
        require(self, "threshold", self.threshold >= 0.0, "0 or more")

    def keep_drafting(self, signal: Signals) -> bool:
        return sqrt(self.factor * signal.entropy) <= self.threshold
