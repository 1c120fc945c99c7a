"""What `generate(assistant_model=...)` of Hugging Face transformers does by itself.

Source: src/transformers/generation/candidate_generator.py and stopping_criteria.py. Defaults changed over the releases:
up to 4.42 the heuristic schedule from 5; from 4.46 a constant 20 with confidence threshold 0.4. Each rule stands alone here.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.policies.base import Policy, Signals, require
from gammatune.policies.fixed import Fixed
from gammatune.policies.gammatune import FULL_TESTS
from gammatune.records import Round


@dataclass
class HFHeuristic(Policy):
    """num_assistant_tokens_schedule="heuristic": +2 after a full acceptance, else -1, never under 1, no upper bound.

    carry="turn" is transformers 4.37 and "heuristic_transient"; carry="never" is "heuristic" since 4.42, which writes
    the number back to the model. full="planned" is the test up to 4.46, "drafted" the one since 4.50; they differ only
    in rounds that ended early.
    """

    name: ClassVar[str] = "hf_heuristic"
    title: ClassVar[str] = "HF heuristic"
    colour: ClassVar[str] = "#009e73"
    adapts_gamma: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("gamma_now",)
    grid: ClassVar[dict[str, tuple]] = {"gamma": (1, 2, 3, 5, 8)}

    gamma: int = 5
    full: str = "drafted"

    def __post_init__(self):
        require(self, "gamma", self.gamma >= 1, "1 or more")
        require(self, "full", self.full in FULL_TESTS, f"one of {', '.join(FULL_TESTS)}")
        super().__post_init__()

    def reset(self) -> None:
        self.gamma_now = self.gamma
        self.judge_by_plan = self.full == "planned"

    def plan(self) -> int:
        return self.gamma_now

    def observe(self, finished: Round) -> None:
        if finished.accepted == (finished.planned if self.judge_by_plan else finished.drafted):
            self.gamma_now += 2
        else:
            self.gamma_now = max(1, self.gamma_now - 1)


@dataclass
class HFConfidence(Fixed):
    """A constant ceiling, and drafting stops after a token whose probability is under the threshold.

    The probability is the drafted token's own, after warping when sampling (greedy: top-1). The token is verified
    ("include"). threshold 0 switches the test off.
    """

    name: ClassVar[str] = "hf_confidence"
    title: ClassVar[str] = "HF confidence"
    colour: ClassVar[str] = "#e69f00"
    watches_draft: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple]] = {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "gamma": (8, 20)}

    gamma: int = 20
    threshold: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        require(self, "threshold", 0.0 <= self.threshold <= 1.0, "between 0 and 1")

    def keep_drafting(self, signal: Signals) -> bool:
        return signal.chosen >= self.threshold
