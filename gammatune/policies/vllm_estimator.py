"""vLLM's online estimate of acceptance, as a rule that ends a block.

Source: vllm-project/vllm, vllm/v1/worker/gpu/spec_decode/acceptance_estimator.py, commit 165b3663, for what is learned,
and adaptive_verification.py beside it, commit 057929c3, for what it is used for. The chance that the token at place k of
a block is accepted, if all before it are, is

    p_k = sigmoid(w_k m + b_k),   m: how far the draft's first choice is above the second, in logits, at most 40

from w = 0, b = 1.5. Each drafted token up to the first rejected one is a sample of its place. Every 100 rounds each place
with 50 samples or more takes one Newton step (ridge 0.001) on the samples since the last, unless its slope would become
negative; then all samples are forgotten. Before the third such step whole blocks are verified. vLLM drafts whole blocks
all the time, and verifies the part of each whose expected tokens per time are most: (1 + p_1 + p_1 p_2 + ...) / time.

Ours: vLLM stops verifying, this rule stops drafting, after the token behind which the next one no longer raises the
expected tokens per price. The next token's m is not known before it is drafted; that of the token before stands for it.
So the first token is always drafted. vLLM takes the time from a profile, here it is the run's prices. m is made of the
recorded probabilities, log(first / second), which are rounded to four decimals: it ends at about 10. vLLM's first version
(PR #52228) took the logit of the largest probability: feature "top1". Its coefficients are 32-bit numbers and shared by a
whole batch.
"""

from dataclasses import dataclass
from math import exp, isfinite, log
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.priced import Priced
from gammatune.records import Round

FEATURES = ("margin", "top1")
MOST_TOKENS = 128
FIRST_BIAS = 1.5
RIDGE = 1e-3
LEAST_DETERMINANT = 1e-12
LARGEST_MARGIN = 40.0
LEAST = 0.00005  # half of the last recorded decimal of a probability
SUMS = ("mm", "m1", "11", "rm", "r1", "count")  # of weights and residuals over a place's samples


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x)) if x > -700.0 else 0.0  # exp overflows beyond


@dataclass
class VLLMEstimator(Priced):
    """gamma: most tokens in a block (vLLM's num_speculative_tokens, which has no default). feature: what m is.

    refit_interval: rounds between Newton steps. warmup_refits: Newton steps before blocks are cut. min_observations: samples
    that a place needs for a step. carry: "never" by default, since a server keeps its coefficients for its lifetime.
    """

    name: ClassVar[str] = "vllm_estimator"
    title: ClassVar[str] = "vLLM estimator"
    colour: ClassVar[str] = "#13372b"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"gamma": (3, 5, 8, 16), "feature": FEATURES}

    carry: str = "never"
    gamma: int = 8
    feature: str = "margin"
    refit_interval: int = 100
    warmup_refits: int = 3
    min_observations: int = 50

    def __post_init__(self):
        require(self, "gamma", 1 <= self.gamma <= MOST_TOKENS, f"between 1 and {MOST_TOKENS}")
        require(self, "feature", self.feature in FEATURES, f"one of {', '.join(FEATURES)}")
        require(self, "refit_interval", self.refit_interval >= 1, "1 or more")
        require(self, "warmup_refits", self.warmup_refits >= 0, "0 or more")
        require(self, "min_observations", self.min_observations >= 1, "1 or more")
        super().__post_init__()

    @property
    def longest(self) -> int:
        return self.gamma

    def reset(self) -> None:
        self.weight, self.bias = [0.0] * self.gamma, [FIRST_BIAS] * self.gamma
        self.rounds, self.refits = 0, 0  # rounds since the last Newton step; steps so far
        self.context = 0
        self.block: list[tuple[float, float]] = []
        self.forget_samples()

    def forget_samples(self) -> None:
        self.sums = [[0.0] * len(SUMS) for _ in range(self.gamma)]

    def begin(self, prompt_tokens: int) -> None:
        self.context = prompt_tokens

    def plan(self) -> int:
        self.block = []  # of each drafted token: m, and the chance that was estimated of it
        self.survival = 1.0  # chance that all drafted tokens are accepted
        self.expected = 1.0  # tokens of the round if drafting ends here
        return self.gamma

    def read(self, signal: Signals) -> float:
        """m of a drafted token."""
        if self.feature == "top1":
            top1 = min(max(signal.top1, LEAST), 1.0 - LEAST)
            return log(top1 / (1.0 - top1))
        second = max(signal.top1 - signal.margin, LEAST)
        return min(max(log(max(signal.top1, LEAST) / second), 0.0), LARGEST_MARGIN)

    def keep_drafting(self, signal: Signals) -> bool:
        place, m = len(self.block), self.read(signal)
        chance = sigmoid(self.weight[place] * m + self.bias[place])
        self.block.append((m, chance))
        if self.refits < self.warmup_refits or place + 1 == self.gamma:
            return True
        self.survival *= chance
        self.expected += self.survival
        gain = self.survival * sigmoid(self.weight[place + 1] * m + self.bias[place + 1])
        now, more = self.price(place + 1, self.context), self.price(place + 2, self.context)
        return (self.expected + gain) * now > self.expected * more

    def observe(self, finished: Round) -> None:
        for place, (m, chance) in enumerate(self.block[: min(finished.accepted + 1, finished.drafted)]):
            weight, residual = chance * (1.0 - chance), (place < finished.accepted) - chance
            sums = self.sums[place]
            sums[0] += weight * m * m
            sums[1] += weight * m
            sums[2] += weight
            sums[3] += residual * m
            sums[4] += residual
            sums[5] += 1
        self.context = finished.context + finished.emitted
        self.rounds += 1
        if self.rounds == self.refit_interval:
            for place in range(self.gamma):
                self.step(place)
            self.rounds, self.refits = 0, self.refits + 1
            self.forget_samples()

    def step(self, place: int) -> None:
        """One Newton step of a place's coefficients, where its samples support one."""
        mm, m1, ones, rm, r1, count = self.sums[place]
        mm, ones = mm + RIDGE, ones + RIDGE
        determinant = mm * ones - m1 * m1
        if count < self.min_observations or not (isfinite(determinant) and abs(determinant) > LEAST_DETERMINANT):
            return
        weight = self.weight[place] + (ones * rm - m1 * r1) / determinant
        bias = self.bias[place] + (mm * r1 - m1 * rm) / determinant
        if isfinite(weight) and isfinite(bias) and weight >= 0.0:
            self.weight[place], self.bias[place] = weight, bias

    def state(self) -> dict:
        numbers = {"rounds": self.rounds, "refits": self.refits}
        for place, sums in enumerate(self.sums):
            numbers |= {f"weight_{place}": self.weight[place], f"bias_{place}": self.bias[place]}
            numbers |= {f"{name}_{place}": value for name, value in zip(SUMS, sums, strict=True)}
        return numbers

    def restore(self, state: dict) -> None:
        self.rounds, self.refits = state["rounds"], state["refits"]
        for place in range(self.gamma):
            self.weight[place], self.bias[place] = state[f"weight_{place}"], state[f"bias_{place}"]
            self.sums[place] = [state[f"{name}_{place}"] for name in SUMS]
