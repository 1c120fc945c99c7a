"""llama.cpp's first rule for draft lengths: eight more after a full block was accepted, one less after a rejection.

Source: examples/speculative/speculative.cpp of the autumn of 2023, after PR ggml-org/llama.cpp#3006, read as a stored
copy of that file (no commit is known of it). With n planned, k drafted, A accepted tokens:

    A = k = n   n <- min(30, n + 8)
    A = k < n   n stays
    A < k       n <- max(2, n - 1)

A block is shorter than planned because the same program stops drafting before a token whose probability is under twice
that of the second choice. The first n is 16, the default of --draft then.

Ours: the probability of the second choice is top-1 minus the recorded margin, so both are rounded to four decimals; each
answer starts afresh, as that program made one answer only.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Policy, Signals, require
from gammatune.records import Round


@dataclass
class Llama2023(Policy):
    """gamma: the first length. gamma_min, gamma_max: where it ends falling and growing. delta: growth.

    ratio: drafting ends before a token whose top-1 probability is under ratio times the second; 0: the signals are not read.
    """

    name: ClassVar[str] = "llama_2023"
    title: ClassVar[str] = "llama.cpp 2023"
    colour: ClassVar[str] = "#13df13"
    adapts_gamma: ClassVar[bool] = True
    watches_draft: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("gamma_now",)
    grid: ClassVar[dict[str, tuple]] = {"gamma_max": (4, 8, 30), "delta": (2, 4, 8)}

    stop_token: str = "exclude"
    gamma: int = 16
    gamma_min: int = 2
    gamma_max: int = 30
    delta: int = 8
    ratio: float = 2.0

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 0, "0 or more")
        require(self, "gamma_min", self.gamma_min >= 1, "1 or more")
        require(self, "gamma_max", self.gamma_max >= self.gamma_min, f"at least gamma_min, which is {self.gamma_min}")
        require(self, "delta", self.delta >= 0, "0 or more")
        require(self, "ratio", 0.0 <= self.ratio < float("inf"), "a finite number of 0 or more")
        self.watches_draft = self.ratio > 0.0
        super().__post_init__()

    def reset(self) -> None:
        self.gamma_now = self.gamma

    def plan(self) -> int:
        return self.gamma_now

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.top1 >= self.ratio * (signal.top1 - signal.margin)

    def observe(self, finished: Round) -> None:
        if finished.accepted < finished.drafted:
            self.gamma_now = max(self.gamma_min, self.gamma_now - 1)
        elif finished.drafted == finished.planned:
            self.gamma_now = min(self.gamma_max, self.gamma_now + self.delta)
