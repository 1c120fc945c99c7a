"""llama.cpp's --draft-p-min (now --spec-draft-p-min): stop at a token whose top-1 probability is under p_min, and drop it.

Source: common/speculative.cpp. Its defaults changed in silence: at most 16 tokens and p_min 0.75 in the builds of 2025, at
most 3 tokens and p_min 0, which is off, in those of 2026 (ggml-org/llama.cpp issues 25908 and 26100).

Departures: llama.cpp takes the probability over the ten or so best tokens only, so that its values are higher than ours
over the whole vocabulary; and --draft-min (0 by default, which changes nothing), which throws a block shorter than itself
away, is left out, because a policy here cannot change a finished block.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.fixed import Fixed


@dataclass
class PMin(Fixed):
    """The defaults of 2025. gamma: llama.cpp's --draft-max. The forward that made the dropped token is paid for."""

    name: ClassVar[str] = "p_min"
    title: ClassVar[str] = "llama.cpp p-min 0.75"
    colour: ClassVar[str] = "#207f13"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"p_min": (0.0, 0.2, 0.4, 0.5, 0.6, 0.75, 0.9), "gamma": (4, 8, 16)}

    stop_token: str = "exclude"
    gamma: int = 16
    p_min: float = 0.75

    def __post_init__(self):
        super().__post_init__()
        require(self, "p_min", 0.0 <= self.p_min <= 1.0, "between 0 and 1")

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.top1 >= self.p_min
