"""Is a speculative answer the target's own? Ids must be equal; a difference passes only as a proven near-tie.

Verifying k + 1 tokens in one forward and decoding one by one sum the same products in another order. Where the target's two
best tokens are closer than that rounding, either is the target's own greedy choice; nowhere else may ids differ.
"""

from dataclasses import dataclass

import torch

from gammatune.decoding.loop import Engine

# Largest difference of the two best logits that rounding alone can turn around, by dtype
NEAR_TIE_LOGITS = {torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 5e-1}


@dataclass
class Comparison:
    """status: "exact", "near_tie" or "different"; position of the first difference; the target's margin there."""

    status: str
    position: int | None = None
    margin: float | None = None


def first_difference(reference: list[int], candidate: list[int]) -> int | None:
    """Index of the first id that differs or is missing on one side; None where both are equal."""
    for position, (wanted, got) in enumerate(zip(reference, candidate, strict=False)):
        if wanted != got:
            return position
    return None if len(reference) == len(candidate) else min(len(reference), len(candidate))


def compare_answers(engine: Engine, prompt_ids: list[int], reference: list[int], candidate: list[int]) -> Comparison:
    """Judge an answer against the autoregressive one to the same prompt."""
    position = first_difference(reference, candidate)
    if position is None:
        return Comparison("exact")
    if position >= min(len(reference), len(candidate)):
        return Comparison("different", position)
    margin = logit_gap(engine, prompt_ids + reference[:position], (reference[position], candidate[position]))
    tied = margin <= NEAR_TIE_LOGITS[engine.pair.dtype]
    return Comparison("near_tie" if tied else "different", position, margin)


def logit_gap(engine: Engine, prefix: list[int], tokens: tuple[int, int]) -> float:
    """How far the worse of two tokens lies under the target's best logit after the prefix."""
    engine.target.reset()
    logits = engine.target.forward(engine.device.upload(prefix), keep=1)[0]  # [V]
    return float(logits.max() - logits[list(tokens)].min())
