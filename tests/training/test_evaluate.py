"""Held-out figures are those of greedy decoding, round by round."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from gammatune.training.evaluate import GAMMA, block_matches, count_rounds, evaluate
from gammatune.training.shards import Answers, Making, write_shard
from gammatune.training.train import columns_of


@torch.inference_mode()
def decode_rounds(draft, text) -> tuple[int, int]:
    """Accepted tokens and rounds where the draft is fed its own choices, as it drafts."""
    ids, place, accepted, rounds = text.ids.long(), text.prompt - 2, 0, 0
    while place < len(ids) - 2:
        cache, state, fed = DynamicCache(), text.features[None, : place + 1].float(), ids[None, 1 : place + 2]
        right = 0
        for _ in range(GAMMA):
            state = draft(state, fed, cache=cache)[:, -1:]
            fed = draft.ids[draft.logits(state)[:, -1].argmax(-1, keepdim=True)]
            if place + right + 2 >= len(ids) or int(fed) != int(ids[place + right + 2]):
                break
            right += 1
        place, accepted, rounds = place + right + 1, accepted + right, rounds + 1
    return accepted, rounds


def test_rounds_are_those_of_drafting(draft, answered, tmp_path):
    write_shard(tmp_path / "s.safetensors", answered, ["qa", "chat", "qa"], Making(3, 0, 0, 0.0))
    # An untrained draft is right now and then: the mean of both normed halves holds some of the target's next choice
    figures = evaluate(draft, Answers([tmp_path / "s.safetensors"]), columns_of(draft), 1000)
    counted = [decode_rounds(draft, text) for text in answered]
    accepted, rounds = map(sum, zip(*counted, strict=True))
    assert accepted > 0 and figures.accepted == pytest.approx(accepted / rounds, abs=1e-4)
    assert figures.by_kind["chat"] == pytest.approx(counted[1][0] / counted[1][1], abs=1e-4)
    assert figures.answer_tokens == sum(len(text.ids) - text.prompt for text in answered) and 0 < figures.covered < 1


def test_blocks_are_right_up_to_their_first_wrong_token():
    matches = np.array([[1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0]], bool)
    assert block_matches(matches).tolist() == [
        [True, False, True, True],
        [True, False, True, False],
        [True, False, False, False],
    ]
    assert count_rounds(np.array([3, 0, 2, 1])) == (3, 1)
    assert count_rounds(np.array([0, 2, 0, 0, 1])) == (3, 3)
    assert block_matches(np.ones((5, 2), bool)).sum() == 3, "an answer shorter than a block"
