"""GammaTune and GammaTune+ (Gautam, Shrestha, Reddy 2025, arXiv 2504.00030, Algorithm 1).

After a round with A accepted tokens of gamma:

    A = gamma  ->  gamma <- A + delta, the running mean stays
    A < gamma  ->  mean  <- clip((1 - eta) * mean + eta * A, gamma_min, gamma_max);  gamma <- ceil(mean)

What the paper does not settle is a field here, and its default is a *community default*: eta 0.3, delta 2, gamma_min 1,
gamma_max 10, start 3. They come from worked examples of people who rebuilt the method, not from the paper's text.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Policy, Signals, require
from gammatune.records import Round

FULL_TESTS = ("planned", "drafted")
CLIPS = ("none", "gamma_max")


@dataclass
class GammaTune(Policy):
    """Grow after a full acceptance, else fall back to a running mean of what was accepted.

    gamma: gamma of the first round, also the mean's start. eta: weight of the newest round in the mean. delta: growth
    after a full acceptance. gamma_min, gamma_max: bounds of the mean. full: a round counts as fully accepted when all
    `planned` tokens (the transcribed algorithm) or all actually `drafted` tokens stand. clip_expand: "none" lets gamma
    grow without bound (as transcribed), "gamma_max" caps it. ignore_cut: learn nothing from rounds that the end of the
    sequence or the token budget shortened.
    """

    name: ClassVar[str] = "gammatune"
    title: ClassVar[str] = "GammaTune"
    colour: ClassVar[str] = "#0072b2"
    marker: ClassVar[str] = "o"
    adapts_gamma: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("gamma_now", "mean")
    grid: ClassVar[dict[str, tuple]] = {"eta": (0.1, 0.3), "delta": (1, 2, 4), "gamma_max": (6, 10, 16)}

    gamma: int = 3
    eta: float = 0.3
    delta: int = 2
    gamma_min: int = 1
    gamma_max: int = 10
    full: str = "planned"
    clip_expand: str = "none"
    ignore_cut: bool = False

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 1, "1 or more (fixed gamma 0 is policy=ar)")
        require(self, "eta", 0.0 <= self.eta <= 1.0, "between 0 and 1")
        require(self, "delta", self.delta >= 0, "0 or more")
        require(self, "gamma_min", self.gamma_min >= 1, "1 or more")
        require(self, "gamma_max", self.gamma_max >= self.gamma_min, f"gamma_min ({self.gamma_min}) or more")
        require(self, "full", self.full in FULL_TESTS, f"one of {', '.join(FULL_TESTS)}")
        require(self, "clip_expand", self.clip_expand in CLIPS, f"one of {', '.join(CLIPS)}")
        super().__post_init__()

    def reset(self) -> None:
        self.gamma_now = self.gamma
        self.mean = float(self.gamma)
        self.judge_by_plan = self.full == "planned"

    def plan(self) -> int:
        return self.gamma_now

    def observe(self, finished: Round) -> None:
        if self.ignore_cut and finished.cut:
            return
        if finished.accepted == (finished.planned if self.judge_by_plan else finished.drafted):
            self.expand(finished.accepted)
        else:
            self.fall_back(finished.accepted)

    def expand(self, accepted: int) -> None:
        self.gamma_now = accepted + self.delta
        if self.clip_expand == "gamma_max":
            self.gamma_now = min(self.gamma_now, self.gamma_max)

    def fall_back(self, accepted: int) -> None:
        mean = (1 - self.eta) * self.mean + self.eta * accepted
        self.mean = min(max(mean, self.gamma_min), self.gamma_max)
        self.gamma_now = math.ceil(self.mean)


@dataclass
class GammaTunePlus(GammaTune):
    """GammaTune that also stops in mid-block once the draft's top-1 probability falls under tau.

    tau is a community default: the paper's value is not known. Under full="planned" a block cut short by tau never
    counts as fully accepted; under full="drafted" it does when all its tokens stand.
    """

    name: ClassVar[str] = "gammatune_plus"
    title: ClassVar[str] = "GammaTune+"
    colour: ClassVar[str] = "#d55e00"
    marker: ClassVar[str] = "^"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"tau": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "gamma_max": (6, 10, 16)}

    tau: float = 0.4

    def __post_init__(self):
        require(self, "tau", 0.0 <= self.tau <= 1.0, "between 0 and 1")
        super().__post_init__()

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.top1 >= self.tau
