"""Answers side by side are those of the target alone, and so are the features."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from gammatune.errors import UserError
from gammatune.models.feature_draft import FeatureTap
from gammatune.models.load import make_config
from gammatune.models.pair import random_pair
from gammatune.models.tiny import tiny_shape
from gammatune.training.teacher import Teacher, group_rows


def decode_alone(pair, prompt, longest):
    ids, cache = list(prompt), DynamicCache()
    fed = torch.tensor([ids])
    for _ in range(longest):
        ids.append(int(pair.target(fed, past_key_values=cache).logits[0, -1].argmax()))
        if ids[-1] in pair.eos_ids:
            break
        fed = torch.tensor([ids[-1:]])
    return ids


@pytest.mark.parametrize("cached", [10_000, 60])
@torch.inference_mode()
def test_answers_and_features_are_those_of_the_target_alone(pair, cached):
    """cached: all in one batch, or nearly each on its own."""
    rng = random.Random(1)
    prompts = [[0, *(rng.randint(4, 259) for _ in range(length))] for length in (3, 30, 1, 12, 7)]
    told = []
    answers = Teacher(pair, 40, cached).answer(prompts, told.append)
    tap = FeatureTap(pair.target)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.ids.tolist() == decode_alone(pair, prompt, 40) and answer.prompt == len(prompt)
        pair.target(answer.ids[None, :-1].long())
        torch.testing.assert_close(answer.features.float(), tap.features[0], rtol=0.01, atol=0.02)
    tap.remove()
    assert sum(told) == sum(len(answer.ids) - answer.prompt for answer in answers)


def test_rows_that_have_ended_leave_and_the_others_go_on():
    """Ends of an answer are made frequent, so that the batch shrinks again and again."""
    pair = random_pair(vocab_size=40)
    pair.eos_ids = tuple(range(4, 12))
    prompts = [[0, token, token + 1] for token in range(12, 38)]
    answers = Teacher(pair, 30).answer(prompts)
    lengths = {len(answer.ids) for answer in answers}
    assert len(lengths) > 4
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.ids.tolist() == decode_alone(pair, prompt, 30)
        assert len(answer.features) == len(answer.ids) - 1


def test_a_target_of_another_kind_is_refused_in_one_sentence(pair):
    other = random_pair()
    other.target = AutoModelForCausalLM.from_config(make_config(tiny_shape(1, model_type="qwen3")))
    with pytest.raises(UserError, match="cannot teach a feature draft: Qwen3ForCausalLM is no Llama and no Qwen2"):
        Teacher(other, 8)


def test_a_batch_keeps_to_its_budget():
    rng = random.Random(0)
    sizes = [rng.randint(5, 90) for _ in range(50)]
    groups = group_rows(sizes, 200)
    assert sorted(sum(groups, [])) == list(range(50))
    assert all(len(group) == 1 or len(group) * max(sizes[row] for row in group) <= 200 for group in groups)
    assert all(2 * min(sizes[row] for row in group) >= max(sizes[row] for row in group) for group in groups)
    assert max(map(len, groups)) > 3
