"""transformers' confidence threshold that follows what the target accepts.

Source: src/transformers/generation/candidate_generator.py, AssistedCandidateGenerator.update_candidate_strategy. The rule
came with 4.46; it acts on the next round of the same answer, as here, since 5.16 (before, on the next answer or not at
all). After each round every drafted token up to the first rejected one is a sample: its probability p, and whether it was
accepted. With six or more samples, of both kinds,

    threshold <- the point of the ROC curve with the least FPR + 3 (1 - TPR), the highest such threshold among equals

FPR: share of the rejected tokens with p >= threshold; TPR: the same share of the accepted tokens.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

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
        self.levels: list[float] = []  # the same samples by probability, from high to low: each once, with its sign turned
        self.counts: list[tuple[int, int]] = []  # how many of each were rejected and accepted
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
        for index, probability in enumerate(self.block[:judged]):
            self.add_sample(probability, index < accepted)
        if len(self.matches) >= FEWEST_SAMPLES and 0 < sum(self.matches) < len(self.matches):
            self.threshold_now = self.choose_threshold()

    def add_sample(self, probability: float, match: bool) -> None:
        self.probabilities.append(probability)
        self.matches.append(int(match))
        place = bisect_left(self.levels, -probability)
        if place == len(self.levels) or self.levels[place] != -probability:
            self.levels.insert(place, -probability)
            self.counts.insert(place, (0, 0))
        false, true = self.counts[place]
        self.counts[place] = (false, true + 1) if match else (false + 1, true)

    def choose_threshold(self) -> float:
        """The least cost over the corners of the ROC curve, from the highest threshold to the lowest.

        Points on a straight line between others are left out, as scikit-learn's roc_curve does, which transformers calls:
        where costs are equal along a line, their last digits must not decide.
        """
        accepted = sum(self.matches)
        rejected, last = len(self.matches) - accepted, len(self.levels) - 1
        least, chosen, false, true = float("inf"), 0, 0, 0
        for place, step in enumerate(self.counts):
            false += step[0]
            true += step[1]
            if 0 < place < last and step == self.counts[place + 1]:
                continue
            cost = false / rejected + WEIGHT_OF_MISSED * (1 - true / accepted)
            if cost < least:
                least, chosen = cost, place
        return -self.levels[chosen]

    def restore(self, state: dict) -> None:
        """Continue with a logged threshold; the samples it came from are gone, and the next answer starts afresh anyway."""
        self.reset()
        Policy.restore(self, state)
