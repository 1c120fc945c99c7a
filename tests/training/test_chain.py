"""Own steps in training are those of drafting; which of them count; what a batch is trained on."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from gammatune.training.chain import make_batch, own_steps, still_aligned
from gammatune.training.recipe import Recipe
from gammatune.training.train import TEXT_PER_PLACE, anneal, columns_of, measure_loss, scale_rate, stream_batches

CPU = torch.device("cpu")


@torch.inference_mode()
def test_own_steps_are_what_the_draft_predicts_while_it_drafts(draft, answered):
    """Against the draft's own forward over a cache: from every place of every answer, four steps, fed the text's tokens."""
    batch, compared = make_batch(answered, CPU), 0
    steps = list(own_steps(draft, batch, 4))
    for row, text in enumerate(answered):
        ids = text.ids.long()
        for at in range(int(batch.counted[row].sum())):
            place, cache = int(batch.places[row, at]), DynamicCache()
            state = draft(text.features[None, : place + 1].float(), ids[None, 1 : place + 2], cache=cache)[:, -1:]
            for j, own in enumerate(steps):
                if at + j == batch.counted[row].sum():
                    break
                assert own.counted[row, at + j]
                torch.testing.assert_close(own.features[row, at + j], state[0, 0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(own.logits[row, at + j], draft.logits(state)[0, 0], rtol=1e-4, atol=1e-3)
                assert int(batch.wanted[row, at + j]) == int(ids[place + j + 2])
                compared += 1
                state = draft(state, ids[None, place + j + 2 : place + j + 3], cache=cache)
    assert compared > 100


def test_an_own_step_counts_only_within_a_block_of_the_answer(draft, answered):
    batch = make_batch(answered, CPU)
    first, second, third = own_steps(draft, batch, 3)
    lengths = torch.tensor([len(text.ids) - text.prompt for text in answered])
    assert first.counted.sum(1).tolist() == lengths.tolist()
    assert second.counted.sum(1).tolist() == (lengths - 1).tolist()
    assert not third.counted[:, :2].any() and third.counted[:, 2].any()


def test_a_block_counts_on_while_each_token_fed_was_among_the_first_choices():
    """Three ids, four places. The right tokens are 0, 1, 2 and one without a row; their ranks are 1, 2 and 3."""
    logits = torch.tensor([[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    wanted = torch.tensor([[0, 1, 2, -1]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    # The token that was ranked at a place is fed one place further on
    assert still_aligned(everywhere, logits, wanted, 1).tolist() == [[False, True, False, False]]
    assert still_aligned(everywhere, logits, wanted, 2).tolist() == [[False, True, True, False]]
    assert still_aligned(everywhere, logits, wanted, 3).tolist() == [[False, True, True, True]]
    # A block that was broken before stays so
    before = torch.tensor([[False, True, False, True]])
    assert still_aligned(before, logits, wanted, 3).tolist() == [[False, False, True, False]]
    # A token without a row breaks every block
    assert still_aligned(everywhere, logits, torch.full((1, 4), -1), 3).any().item() is False


def test_the_alignment_is_annealed_and_the_rate_rises_and_falls():
    recipe = Recipe(align_first=10, align_last=3)
    assert [anneal(recipe, done) for done in (0.0, 0.5, 1.0)] == [10, 6, 3]
    assert scale_rate(0.0, 0.1) == 0.01 and scale_rate(0.05, 0.1) == pytest.approx(0.5)
    assert scale_rate(0.1, 0.1) == pytest.approx(1.0) and scale_rate(1.0, 0.1) == pytest.approx(0.01)


def test_the_loss_is_that_of_each_own_step_alone(draft, answered):
    """One own step by hand: cross-entropy at the tokens that have a row, features everywhere."""
    batch, columns = make_batch(answered, CPU), columns_of(draft)
    recipe = Recipe(steps_in_loss=1, hard=1.0, token_weight=1.0, feature_weight=0.0)
    (own,) = own_steps(draft, batch, 1)
    known = batch.counted & (columns[batch.wanted] >= 0)
    assert 0 < known.sum() < batch.counted.sum()
    by_hand = torch.nn.functional.cross_entropy(own.logits[known], columns[batch.wanted][known], reduction="sum")
    found = measure_loss(draft, batch, columns, recipe, 0.0)
    torch.testing.assert_close(found.total, by_hand / batch.counted.sum())
    soft = measure_loss(draft, batch, columns, dataclasses.replace(recipe, hard=0.0), 0.0)
    assert soft.tokens != found.tokens and soft.features == found.features
    more = measure_loss(
        draft, batch, columns, dataclasses.replace(recipe, steps_in_loss=3, align_last=1, align_first=130), 0.0
    )
    strict = measure_loss(
        draft, batch, columns, dataclasses.replace(recipe, steps_in_loss=3, align_last=1, align_first=1), 0.0
    )
    assert found.tokens < strict.tokens < more.tokens, "fewer places count in later steps where more is asked of the draft"


def test_an_epoch_has_every_text_once_in_batches_of_its_size():
    rng, recipe = np.random.default_rng(0), Recipe(step_places=100)
    answers, prompts = rng.integers(1, 60, 80), rng.integers(2, 900, 80)
    seen, batches = [], stream_batches(answers + prompts, prompts, recipe)
    while len(seen) < 160:
        rows = next(batches)
        seen += rows
        assert len(rows) == 1 or len(rows) * answers[rows].max() <= 100
        assert len(rows) == 1 or len(rows) * (answers + prompts)[rows].max() <= 100 * TEXT_PER_PLACE
    assert sorted(seen[:80]) == sorted(seen[80:]) == list(range(80)) and seen[:80] != seen[80:]
    assert seen[:80] == sum(islice(stream_batches(answers + prompts, prompts, recipe), 80), [])[:80]


def test_a_draft_of_all_tokens_has_a_column_for_each(pair):
    from gammatune.models.feature_draft import FeatureDraft

    assert columns_of(FeatureDraft.from_target(pair.target)).tolist() == list(range(260))
