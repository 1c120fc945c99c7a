"""ik_llama.cpp's --spec-autotune: two bandits that choose the length and the threshold of each block by themselves.

Source: ikawrakow/ik_llama.cpp, common/spec-tuner.cpp and common/spec-tuner.h, commit 1b870604; where a block ends in
common/speculative.cpp, commit 0192b22b; the reward in a later copy of that file, whose commit is not known; defaults in
common/common.h, commit 007d6400. Before each block, for each of

    n_max   1, 2, ..., 16, or up to the user's own where that is larger
    p_min   0, 0.095, ..., 0.95 and the user's own

separately: with chance epsilon any of its values, else the one with the best mean reward so far, the smallest before
anything is known. The block ends after a token whose top-1 probability is under p_min. The reward is the round's
tokens/s, and goes to both values. Rewards are also followed by a running mean of weight 0.05. After 30 rounds in a row
that are more than 30 % under it, all is forgotten but the user's values, which are then taken for the best, and for 50
rounds nothing is counted as low.

Ours: a policy has no clock, so tokens/s is (accepted + 1) / the price of the round. The generator is a multiplicative one
with a state of one number (the C++ library's minstd_rand) instead of mt19937 from a random seed, so that runs repeat and
restored ones go on. A third bandit, over the fewest tokens (0 to 6) of a block that is worth verifying, is left out:
ik_llama.cpp throws shorter blocks away after drafting them, and policies here have no such call. ik_llama.cpp compares
p_min with a probability among the ten best tokens, which is higher.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.priced import Priced
from gammatune.records import Round

MOST_TOKENS = 128
LONGEST_TRIED = 16
THRESHOLDS, LARGEST_THRESHOLD = 11, 0.95
SAME = 1e-6  # thresholds that are no further apart are one
MEAN_WEIGHT = 0.05
LOW = 0.7  # of the running mean
LOW_ROUNDS = 30
GRACE_ROUNDS = 50
MULTIPLIER, MODULUS = 48271, 2**31 - 1
FIRST_DRAWS = 3  # thrown away, since those of small seeds are small


class Bandit:
    """The values of one setting and what they have earned."""

    def __init__(self, values: list, users):
        self.values = values
        self.users = min(range(len(values)), key=lambda place: abs(values[place] - users))  # place of the user's own
        self.now = self.best = 0
        self.forget()

    def forget(self) -> None:
        self.means = [0.0] * len(self.values)  # rewards are above 0, so that what was never played is never the best
        self.plays = [0] * len(self.values)

    def learn(self, reward: float) -> None:
        place = self.now
        self.plays[place] += 1
        self.means[place] += (reward - self.means[place]) / self.plays[place]
        self.best = self.means.index(max(self.means))

    def start_again(self) -> None:
        self.forget()
        self.now = self.best = self.users


@dataclass
class IKAutotune(Priced):
    """gamma, p_min: the user's own length and threshold. epsilon: chance of any value. seed: of the draws.

    carry: "never" by default, since a server keeps this state for its lifetime.
    """

    name: ClassVar[str] = "ik_autotune"
    title: ClassVar[str] = "ik_llama.cpp autotune"
    colour: ClassVar[str] = "#13dfdf"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"epsilon": (0.02, 0.05, 0.15, 0.3)}

    carry: str = "never"
    gamma: int = 16
    p_min: float = 0.75
    epsilon: float = 0.15
    seed: int = 0

    def __post_init__(self):
        require(self, "gamma", 1 <= self.gamma <= MOST_TOKENS, f"between 1 and {MOST_TOKENS}")
        require(self, "p_min", 0.0 <= self.p_min <= LARGEST_THRESHOLD, f"between 0 and {LARGEST_THRESHOLD}")
        require(self, "epsilon", 0.0 <= self.epsilon <= 1.0, "between 0 and 1")
        require(self, "seed", self.seed >= 0, "0 or more")
        super().__post_init__()

    @property
    def longest(self) -> int:
        return max(LONGEST_TRIED, self.gamma)

    def reset(self) -> None:
        thresholds = [LARGEST_THRESHOLD * step / (THRESHOLDS - 1) for step in range(THRESHOLDS)]
        if all(abs(threshold - self.p_min) >= SAME for threshold in thresholds):
            thresholds = sorted([*thresholds, self.p_min])
        self.lengths, self.thresholds = Bandit([*range(1, self.longest + 1)], self.gamma), Bandit(thresholds, self.p_min)
        self.mean, self.low, self.grace = 0.0, 0, 0  # of rewards; low rounds in a row; rounds that are not called low
        self.generator = self.seed % (MODULUS - 1) + 1
        for _ in range(FIRST_DRAWS):
            self.draw()

    def draw(self) -> float:
        """Uniform, from 0 to under 1."""
        self.generator = self.generator * MULTIPLIER % MODULUS
        return self.generator / MODULUS

    def plan(self) -> int:
        for bandit in (self.lengths, self.thresholds):
            bandit.now = int(self.draw() * len(bandit.values)) if self.draw() < self.epsilon else bandit.best
        self.threshold_now = self.thresholds.values[self.thresholds.now]
        return self.lengths.values[self.lengths.now]

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.top1 >= self.threshold_now

    def observe(self, finished: Round) -> None:
        if finished.drafted == 0:  # the server asks for no block where there is no room for one
            return
        reward = (finished.accepted + 1) / self.price(finished.drafted, finished.context)
        for bandit in (self.lengths, self.thresholds):
            bandit.learn(reward)
        if self.grace > 0:
            self.grace -= 1
        elif self.mean > 0.0 and reward < LOW * self.mean:
            self.low += 1
            if self.low >= LOW_ROUNDS:
                self.start_again()
                return
        elif self.mean > 0.0:
            self.low = 0
        self.mean = reward if self.mean <= 0.0 else MEAN_WEIGHT * reward + (1.0 - MEAN_WEIGHT) * self.mean

    def start_again(self) -> None:
        for bandit in (self.lengths, self.thresholds):
            bandit.start_again()
        self.mean, self.low, self.grace = 0.0, 0, GRACE_ROUNDS

    def state(self) -> dict:
        numbers = {"mean": self.mean, "low": self.low, "grace": self.grace, "generator": self.generator}
        for name, bandit in (("length", self.lengths), ("threshold", self.thresholds)):
            numbers[f"{name}_best"] = bandit.best
            numbers |= {f"{name}_mean_{place}": mean for place, mean in enumerate(bandit.means)}
            numbers |= {f"{name}_plays_{place}": plays for place, plays in enumerate(bandit.plays)}
        return numbers

    def restore(self, state: dict) -> None:
        for key in ("mean", "low", "grace", "generator"):
            setattr(self, key, state[key])
        for name, bandit in (("length", self.lengths), ("threshold", self.thresholds)):
            bandit.best = state[f"{name}_best"]
            bandit.means = [state[f"{name}_mean_{place}"] for place in range(len(bandit.values))]
            bandit.plays = [state[f"{name}_plays_{place}"] for place in range(len(bandit.values))]
