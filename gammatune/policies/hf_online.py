"""transformers' confidence threshold that follows what the target accepts.

Source: src/transformers/generation/candidate_generator.py, AssistedCandidateGenerator.update_candidate_strategy. The rule
came with 4.46; it acts on the next round of the same answer, as here, since 5.16 (before, on the next answer or not at
all). After each round every drafted token up to the first rejected one is a sample: its probability p, and whether it was
accepted. With six or more samples, of both kinds,

    threshold <- the point of the ROC curve with the least FPR + 3 (1 - TPR), the highest such threshold among equals

FPR: share of the rejected tokens with p >= threshold; TPR: the same share of the accepted tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gammatune.policies.base import Policy, Signals, require
from gammatune.policies.transformers_rules import HFConfidence
from gammatune.records import Round

FEWEST_SAMPLES = 6
WEIGHT_OF_MISSED = 3


@dataclass
class HFConfidenceOnline(HFConfidence):
    """HFConfidence whose threshold is chosen again after each round from this answer's own samples.

    threshold: the first one, above 0 (at 0 transformers never adapts). gamma: the ceiling, constant. The samples are not
    part of the logged state and, as in transformers, end with the answer: any carry but "turn" is refused. transformers
    itself adapts only where scikit-learn is installed (the [sklearn] extra), and silently keeps the threshold elsewhere.
    """

    name: ClassVar[str] = "hf_confidence_online"
    title: ClassVar[str] = "HF online threshold"
    colour: ClassVar[str] = "#7f6413"
    state_fields: ClassVar[tuple[str, ...]] = ("threshold_now",)
    grid: ClassVar[dict[str, tuple]] = {"threshold": (0.2, 0.4, 0.6)}

    def __post_init__(self):
        super().__post_init__()
        require(self, "threshold", self.threshold > 0.0, "above 0 (a constant 20 without a threshold is policy=hf_constant)")
        require(
            self, "carry", self.carry == "turn", "turn, because the samples its threshold comes from end with the answer"
        )

    def reset(self) -> None:
        self.threshold_now = self.threshold
        self.probabilities: list[float] = []
        self.matches: list[int] = []
        self.block: list[float] = []

    def keep_drafting(self, signal: Signals) -> bool:
        if signal.index == 0:
            self.block.clear()
        self.block.append(signal.chosen)
        return signal.chosen >= self.threshold_now

    def observe(self, finished: Round) -> None:
        if finished.drafted == 0:
            return
        accepted = finished.emitted - 1  # transformers counts an accepted end of sequence as the target's own token
        judged = min(accepted + 1, finished.drafted)
        self.probabilities += self.block[:judged]
        self.matches += [1] * accepted + [0] * (judged - accepted)
        if len(self.matches) >= FEWEST_SAMPLES and 0 < sum(self.matches) < len(self.matches):
            self.threshold_now = self.choose_threshold()

    def choose_threshold(self) -> float:
        thresholds, false_positives, true_positives = trace_roc(np.array(self.probabilities), np.array(self.matches))
        false_rate, true_rate = false_positives / false_positives[-1], true_positives / true_positives[-1]
        return float(thresholds[(false_rate + WEIGHT_OF_MISSED * (1 - true_rate)).argmin()])

    def restore(self, state: dict) -> None:
        """Continue with a logged threshold; the samples it came from are gone, and the next answer starts afresh anyway."""
        self.reset()
        Policy.restore(self, state)


def trace_roc(probabilities: np.ndarray, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds from high to low, and how many mismatches and matches [points] reach each: the corners of the ROC curve.

    The points of scikit-learn's roc_curve, which transformers calls, at a tenth of its price: replay asks in every round. As
    there, the first point accepts nothing, and points on a straight line between others are left out.
    """
    order = np.argsort(probabilities, kind="stable")[::-1]
    probabilities, matches = probabilities[order], matches[order]
    last = np.append(np.flatnonzero(np.diff(probabilities)), len(probabilities) - 1)
    true = np.cumsum(matches)[last]
    false = 1 + last - true
    if len(last) > 2:
        corner = np.concatenate([[True], (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), [True]])
        last, true, false = last[corner], true[corner], false[corner]
    return np.append(np.inf, probabilities[last]), np.append(0, false), np.append(0, true)
