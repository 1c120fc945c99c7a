"""What a draft reaches on answers that it was not trained on, exactly as greedy decoding would count it."""

from dataclasses import dataclass

import numpy as np
import torch

from gammatune.models.feature_draft import FeatureDraft
from gammatune.training.chain import make_batch, own_steps
from gammatune.training.recipe import KINDS
from gammatune.training.shards import Answers
from gammatune.training.teacher import group_rows

GAMMA = 5


@dataclass(frozen=True)
class Figures:
    """Held-out figures of one draft."""

    gamma: int  # own steps of a block
    answer_tokens: int  # that were drafted from
    covered: float  # part of them that the draft can propose at all
    agreement: list[float]  # part of right tokens at each own step, where all before it in the block were right
    accepted: float  # drafted tokens accepted per round
    by_kind: dict[str, float]  # the same for each kind of prompt


@torch.inference_mode()
def evaluate(draft: FeatureDraft, answers: Answers, columns: torch.Tensor, step_positions: int) -> Figures:
    """Figures over whole texts. columns [V]: of each target id among the draft's own, -1 for none.

    Rounds are those of greedy decoding: a block begins at the target's own feature and is fed the draft's choices, which are
    the text's own tokens up to the first wrong one; what is after that does not count.
    """
    accepted, rounds, kinds, covered = [], [], [], 0
    right, tried = np.zeros(GAMMA), np.zeros(GAMMA)
    for rows in group_rows([int(size) for size in answers.sizes], step_positions):
        batch = make_batch([answers[row] for row in rows], columns.device)
        wanted = columns[batch.wanted]
        matched = torch.stack(
            [(own.logits.argmax(-1) == wanted) & own.counted for own in own_steps(draft, batch, GAMMA)]
        ).cpu()
        covered += int(((wanted >= 0) & batch.counted).sum())
        for row, matches, counted in zip(rows, matched.unbind(1), batch.counted.cpu(), strict=True):
            steps = block_matches(matches[:, counted].numpy())
            before = np.concatenate([np.ones_like(steps[:1]), steps[:-1]])
            reach = np.arange(steps.shape[1]) + np.arange(GAMMA)[:, None] < steps.shape[1]
            right += steps.sum(1)
            tried += (before & reach).sum(1)
            got, needed = count_rounds(steps.sum(0))
            accepted.append(got)
            rounds.append(needed)
            kinds.append(int(answers.kinds[row]))
    accepted, rounds, kinds = map(np.array, (accepted, rounds, kinds))
    total = int((answers.sizes - answers.prompts).sum())
    return Figures(
        gamma=GAMMA,
        answer_tokens=total,
        covered=round(covered / total, 4),
        agreement=[round(float(part), 4) for part in right / np.maximum(tried, 1)],
        accepted=round(float(accepted.sum() / rounds.sum()), 4),
        by_kind={
            KINDS[kind]: round(float(accepted[kinds == kind].sum() / rounds[kinds == kind].sum()), 4)
            for kind in np.unique(kinds)
        },
    )


def block_matches(matches: np.ndarray) -> np.ndarray:
    """[GAMMA, n], by the place where a block begins: whether its token of each own step is right, and all before it.

    matches [GAMMA, n]: by the place that an own step predicts from.
    """
    steps, n = matches.shape
    moved = np.zeros_like(matches)
    for step in range(min(steps, n)):
        moved[step, : n - step] = matches[step, step:]
    return np.logical_and.accumulate(moved, axis=0)


def count_rounds(lengths: np.ndarray) -> tuple[int, int]:
    """Accepted tokens and rounds of an answer. lengths [n]: right tokens of a block that begins at each place."""
    place = accepted = rounds = 0
    while place < len(lengths):
        accepted += int(lengths[place])
        place += int(lengths[place]) + 1
        rounds += 1
    return accepted, rounds
