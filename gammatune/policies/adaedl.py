"""AdaEDL: an entropy bound with a threshold that follows the acceptance rate (Agrawal et al. 2024, arXiv 2410.18351).

Drafting ends at the first token for which, H being the draft's entropy in nats,

    1 - sqrt(factor * H) < threshold

and that token is dropped. After each round (Algorithm 1 there; L is the longest block, here gamma):

    rate      <- beta1 * rate + (1 - beta1) * A / D
    wanted    =  threshold + epsilon if rate < alpha, else threshold - epsilon if A != L, else threshold
    threshold <- beta2 * threshold + (1 - beta2) * wanted

So the threshold moves by at most (1 - beta2) * epsilon = 0.001 a round. A is compared with L, not with D: a well accepted
short block lowers the threshold.

Factor 0.2 and L = 7 (of 3, 7, 16) are the paper's; alpha 0.9, beta1 0.5, beta2 0.9, epsilon 0.01 are the paper's, taken from
Draft & Verify (arXiv 2309.08168). The paper gives no initial threshold (it swept it, and says that results depend on it), no
initial rate, and not whether they outlive an answer. Community defaults: threshold 0.4, as in transformers' rule, since both
bound a chance of acceptance (here H > 1.8); rate starts at alpha; both restart with each answer.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from gammatune.policies.base import Policy, Signals, require
from gammatune.records import Round


@dataclass
class AdaEDL(Policy):
    """threshold: the first one. A block has at least one token, whatever its entropy: A / D needs one (ours).

    A round that drafted nothing, for want of budget, teaches nothing.
    """

    name: ClassVar[str] = "adaedl"
    title: ClassVar[str] = "AdaEDL"
    colour: ClassVar[str] = "#92cc33"
    watches_draft: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("rate", "threshold_now")
    grid: ClassVar[dict[str, tuple]] = {"threshold": (0.1, 0.2, 0.3, 0.4, 0.6), "gamma": (7, 16)}

    stop_token: str = "exclude"
    gamma: int = 7
    factor: float = 0.2
    threshold: float = 0.4
    alpha: float = 0.9
    beta1: float = 0.5
    beta2: float = 0.9
    epsilon: float = 0.01

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 1, "1 or more")
        require(self, "factor", self.factor > 0.0, "above 0")
        require(self, "threshold", self.threshold <= 1.0, "at most 1")
        for name in ("alpha", "beta1", "beta2"):
            require(self, name, 0.0 <= getattr(self, name) <= 1.0, "between 0 and 1")
        require(self, "epsilon", self.epsilon >= 0.0, "0 or more")
        super().__post_init__()

    def reset(self) -> None:
        self.rate = self.alpha
        self.threshold_now = self.threshold

    def plan(self) -> int:
        return self.gamma

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.index == 0 or 1 - sqrt(self.factor * signal.entropy) >= self.threshold_now

    def observe(self, finished: Round) -> None:
        if finished.drafted == 0:
            return
        self.rate = self.beta1 * self.rate + (1 - self.beta1) * finished.accepted / finished.drafted
        wanted = self.threshold_now
        if self.rate < self.alpha:
            wanted += self.epsilon
        elif finished.accepted != self.gamma:
            wanted -= self.epsilon
        self.threshold_now = self.beta2 * self.threshold_now + (1 - self.beta2) * wanted
