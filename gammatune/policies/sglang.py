"""SGLang's adaptive number of draft steps (--speculative-adaptive) at batch size 1.

Source: SGLang 0.5.23, srt/speculative/adaptive_spec_params.py, AdaptiveStepSlot, slot of batch size 1. A running mean of the
accepted tokens walks along a list of steps. Per round, unless the step is 0: mean <- (1 - ema_alpha) * mean + ema_alpha * A,
from (first step - 1). Every `update_interval` rounds after `warmup_rounds`:

    down one entry while  mean <= below - 0.5 + down_hysteresis   (0.5 + down_hysteresis if the entry below is 0)
    if it did not move:
    up one entry while    mean >  step - 0.5 + up_hysteresis

Step 0 drafts nothing and teaches nothing; the next decision tries the smallest positive step. The optional ceiling (off by
default) is left out.

Departures: SGLang uses this with EAGLE heads and drafts all steps in every round; here the end of the sequence and the token
budget shorten the last round of an answer, whose A then counts as it is.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from gammatune.policies.base import Policy, require
from gammatune.records import Round


@dataclass
class SGLangWalk(Policy):
    """steps: the lengths to walk along, in any order. gamma: the first one; the middle entry if it is not among them.

    carry: "never" by default, since a server keeps this state for its lifetime.
    """

    name: ClassVar[str] = "sglang_walk"
    title: ClassVar[str] = "SGLang walk"
    colour: ClassVar[str] = "#137f7f"
    adapts_gamma: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("gamma_now", "mean", "rounds_seen")
    grid: ClassVar[dict[str, tuple]] = {"ema_alpha": (0.1, 0.2, 0.4), "update_interval": (1, 5)}

    carry: str = "never"
    gamma: int = 3
    steps: list[int] = field(default_factory=lambda: [1, 3, 5, 7])
    ema_alpha: float = 0.2
    update_interval: int = 5
    warmup_rounds: int = 10
    down_hysteresis: float = -0.25
    up_hysteresis: float = 0.0

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 0, "0 or more")
        require(self, "steps", len(self.steps) > 0 and min(self.steps) >= 0, "a list of one or more numbers of 0 or more")
        require(self, "ema_alpha", 0.0 <= self.ema_alpha <= 1.0, "between 0 and 1")
        require(self, "update_interval", self.update_interval >= 1, "1 or more")
        require(self, "warmup_rounds", self.warmup_rounds >= 0, "0 or more")
        for name in ("down_hysteresis", "up_hysteresis"):
            require(self, name, isfinite(getattr(self, name)), "a finite number")
        super().__post_init__()

    def reset(self) -> None:
        self.ladder = sorted(set(self.steps))
        self.gamma_now = self.gamma if self.gamma in self.ladder else self.ladder[len(self.ladder) // 2]
        self.mean = float(self.gamma_now - 1)
        self.rounds_seen = 0

    def plan(self) -> int:
        return self.gamma_now

    def observe(self, finished: Round) -> None:
        if self.gamma_now > 0:
            self.mean = (1 - self.ema_alpha) * self.mean + self.ema_alpha * finished.accepted
        self.rounds_seen += 1
        due = self.rounds_seen - self.warmup_rounds
        if due > 0 and due % self.update_interval == 0:
            if self.gamma_now == 0:
                self.probe()
            else:
                self.walk()

    def walk(self) -> None:
        place = self.ladder.index(self.gamma_now)
        lower = self.walk_down(place)
        self.gamma_now = self.ladder[lower if lower < place else self.walk_up(place)]

    def probe(self) -> None:
        """Try drafting again; a walk that began at 0 has no mean yet and starts it here."""
        self.gamma_now = self.ladder[min(1, len(self.ladder) - 1)]
        if self.gamma_now > 0 and self.mean < 0:
            self.mean = float(self.gamma_now - 1)

    def walk_down(self, place: int) -> int:
        while place > 0 and self.mean <= max(self.ladder[place - 1] - 0.5, 0.5) + self.down_hysteresis:
            place -= 1
        return place

    def walk_up(self, place: int) -> int:
        while place < len(self.ladder) - 1 and self.mean > self.ladder[place] - 0.5 + self.up_hysteresis:
            place += 1
        return place
