"""Stop once the whole block is likely to hold a rejection: SpecDec++'s threshold policy without its trained head.

SpecDec++ (Huang et al. 2024, arXiv 2405.19715; Kaffaljidhmah2/SpecDec_pp, specdec_pp/hf_generation.py) proves that the best
policy is a threshold on the chance that the block so far holds at least one rejection, and trains a head to estimate it.
Here the draft's top-1 probability stands for each token's chance of acceptance (ours, and uncalibrated):

    stop after a token for which  1 - p_1 * p_2 * ... * p_k > threshold,   gamma_min <= k <= gamma

That token is verified. The bounds 2 and 20 are SpecDec++'s. Its threshold is 0.7 in the sample script, 0.3 in the README's
benchmark. Its head scores each token one step late; the probability used here needs no such lag.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.fixed import Fixed


@dataclass
class Cumulative(Fixed):
    """threshold: chance of a rejection that is still borne (the sample script's). gamma_min, gamma: fewest and most tokens.

    A gamma under gamma_min is the stronger of the two.
    """

    name: ClassVar[str] = "cumulative"
    title: ClassVar[str] = "cumulative 0.7"
    colour: ClassVar[str] = "#7f1371"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"threshold": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.95), "gamma_min": (1, 2)}

    gamma: int = 20
    gamma_min: int = 2
    threshold: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        require(self, "gamma_min", self.gamma_min >= 1, "1 or more")
        require(self, "threshold", 0.0 <= self.threshold <= 1.0, "between 0 and 1")

    def keep_drafting(self, signal: Signals) -> bool:
        self.survival = signal.top1 * (self.survival if signal.index else 1.0)
        return 1 - self.survival <= self.threshold or signal.index + 1 < self.gamma_min
