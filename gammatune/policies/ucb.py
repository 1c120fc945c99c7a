"""A bandit over draft lengths: UCBSpec of BanditSpec (Hou et al. 2025, arXiv 2505.15141, Algorithm 4).

Each of K arms (lengths) is played once; then the round t takes the arm with the largest mean reward + radius. With n plays
of the arm, rewards over a range of 1, and the paper's delta called risk here,

    radius = 1/2 * sqrt((1 + n) / n^2 * (1 + 2 * log(K * t^2 * sqrt(1 + n) / risk)))

The paper's: this rule, history per prompt, lengths 0 to 4 and throughput as the reward in its experiment on lengths. Its
radius has L/2 for tokens per round, which range over L; scaling rewards to a range of 1 makes that 1/2. With about a
hundred rounds an answer, the radius stays wider than the gaps between the arms, and much of an answer is exploration.

The released code's (sail-sg/BanditSpec, generate_utils.py, ucb_length_spec_generate): lengths 1 to 4, round robin through
round 7, then mean + sqrt(6 log t / all plays). That bonus is the same for each arm, so the choice is the best mean: radius
"none".

Ours: a policy has no clock, so throughput is modelled as emitted / (T_target + drafted * T_draft) and divided by the
largest value that an arm can reach; and the value of risk, since none is published.

Reward "tokens" is the number of emitted tokens, the paper's reward for choosing among draft models. Over lengths it is a
trap: it never falls as the length grows, so the longest arm wins.
"""

from dataclasses import dataclass, field
from math import log, log1p, sqrt
from typing import ClassVar

from gammatune.policies.base import Policy, require
from gammatune.records import Round

REWARDS = ("throughput", "tokens")
RADII = ("paper", "none")


@dataclass
class UCB(Policy):
    """arms: the lengths. reward: "throughput" or "tokens". cost_ratio: T_target / T_draft, for throughput only.

    radius: "paper", or "none" for the best mean. risk: the paper's delta. warmup_rounds: rounds of round robin, at least
    one per arm.
    """

    name: ClassVar[str] = "ucb"
    title: ClassVar[str] = "UCB"
    colour: ClassVar[str] = "#132e7f"
    grid: ClassVar[dict[str, tuple]] = {"radius": ("paper", "none")}

    arms: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    reward: str = "throughput"
    cost_ratio: float = 10.0
    radius: str = "paper"
    risk: float = 0.1
    warmup_rounds: int = 0

    def __post_init__(self):
        require(self, "arms", len(self.arms) > 0 and min(self.arms) >= 0, "a list of one or more numbers of 0 or more")
        require(self, "arms", len(set(self.arms)) == len(self.arms), "a list that names each length once")
        require(self, "reward", self.reward in REWARDS, f"one of {', '.join(REWARDS)}")
        require(self, "cost_ratio", self.cost_ratio > 0.0, "above 0")
        require(self, "radius", self.radius in RADII, f"one of {', '.join(RADII)}")
        require(self, "risk", 0.0 < self.risk <= 1.0, "above 0 and at most 1")
        require(self, "warmup_rounds", self.warmup_rounds >= 0, "0 or more")
        super().__post_init__()

    def reset(self) -> None:
        self.places = {arm: place for place, arm in enumerate(self.arms)}
        self.keys = [f"pulls_{arm}" for arm in self.arms] + [f"mean_{arm}" for arm in self.arms]
        self.best_throughput = max(self.throughput(arm + 1, arm) for arm in self.arms)
        self.pulls = [0] * len(self.arms)
        self.means = [0.0] * len(self.arms)

    def plan(self) -> int:
        played, count = sum(self.pulls), len(self.arms)
        if played < max(count, self.warmup_rounds):
            return self.arms[played % count]
        scores = self.means if self.radius == "none" else self.add_radius(played + 1)
        return self.arms[scores.index(max(scores))]

    def add_radius(self, t: int) -> list[float]:
        shared = 1 + 2 * log(len(self.arms) * t * t / self.risk)
        return [mean + sqrt((1 + n) * (shared + log1p(n))) / (2 * n) for mean, n in zip(self.means, self.pulls, strict=True)]

    def observe(self, finished: Round) -> None:
        place = self.places[finished.planned]
        self.pulls[place] += 1
        self.means[place] += (self.value(finished) - self.means[place]) / self.pulls[place]

    def value(self, finished: Round) -> float:
        """The round's reward, between 0 and 1."""
        if self.reward == "tokens":
            return (finished.emitted - 1) / max(1, *self.arms)
        return self.throughput(finished.emitted, finished.drafted) / self.best_throughput

    def throughput(self, emitted: int, drafted: int) -> float:
        """Tokens per T_target."""
        return emitted / (1 + drafted / self.cost_ratio)

    def state(self) -> dict:
        return dict(zip(self.keys, self.pulls + self.means, strict=True))

    def restore(self, state: dict) -> None:
        count = len(self.arms)
        values = [state[key] for key in self.keys]
        self.pulls, self.means = values[:count], values[count:]
