"""One token more after N successes in a row, one less after N failures in a row: a rule proposed for llama.cpp in 2026.

Source: PR ggml-org/llama.cpp#25726 (July 2026, open), its description; the code of its first version is not stored
anywhere that was found. A success is a block of which all but at most B tokens are accepted. The length stays within
--spec-draft-n-min and --spec-draft-n-max. The author reports N = 11 and B = 0, sometimes 1. A later branch of the same
author (Us5rName/llama.cpp, common/speculative-adaptive-length.h, commit 2e840daa) starts at the least length, forgets its
counts when the length changes, and adds a rolling window and a waiting time, which are left out.

Ours: that start and that forgetting; bounds of 1 and 16, where llama.cpp's own are 0 and 3, because at 0 nothing is
verified and nothing can be learned, and 3 leaves little to adapt; that a round that drafts nothing counts as neither.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Policy, require
from gammatune.records import Round


@dataclass
class InARow(Policy):
    """gamma: the first length, moved into the bounds gamma_min and gamma_max. times: N. bias: B.

    carry: "never" by default, since a server keeps this state for its lifetime.
    """

    name: ClassVar[str] = "llama_in_a_row"
    title: ClassVar[str] = "llama.cpp N in a row"
    colour: ClassVar[str] = "#1313df"
    adapts_gamma: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("gamma_now", "streak")
    grid: ClassVar[dict[str, tuple]] = {"gamma_max": (3, 8, 16), "times": (2, 5, 11), "bias": (0, 1)}

    carry: str = "never"
    gamma: int = 1
    gamma_min: int = 1
    gamma_max: int = 16
    times: int = 11
    bias: int = 0

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 0, "0 or more")
        require(self, "gamma_min", self.gamma_min >= 1, "1 or more")
        require(self, "gamma_max", self.gamma_max >= self.gamma_min, f"at least gamma_min, which is {self.gamma_min}")
        require(self, "times", self.times >= 1, "1 or more")
        require(self, "bias", self.bias >= 0, "0 or more")
        super().__post_init__()

    def reset(self) -> None:
        self.gamma_now = min(self.gamma_max, max(self.gamma_min, self.gamma))
        self.streak = 0  # successes in a row, or failures in a row below 0

    def plan(self) -> int:
        return self.gamma_now

    def observe(self, finished: Round) -> None:
        if finished.drafted == 0:
            return
        if finished.accepted >= finished.drafted - self.bias:
            self.streak = max(0, self.streak) + 1
        else:
            self.streak = min(0, self.streak) - 1
        if self.streak >= self.times and self.gamma_now < self.gamma_max:
            self.gamma_now, self.streak = self.gamma_now + 1, 0
        elif self.streak <= -self.times and self.gamma_now > self.gamma_min:
            self.gamma_now, self.streak = self.gamma_now - 1, 0
