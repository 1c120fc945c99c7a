"""The tiny-random pair and its byte tokenizer."""

from dataclasses import replace

import pytest
import torch

from gammatune.config import Checkpoint, PairConfig
from gammatune.errors import UserError
from gammatune.models.pair import load_pair, random_pair
from gammatune.models.tiny import ByteTokenizer, tiny_shape


def agreement(noise):
    """Share of positions of a random text at which both want the same token, over two seeds."""
    text, matches = torch.randint(4, 260, (1, 200), generator=torch.Generator().manual_seed(0)), []
    for seed in (1, 2):
        pair = random_pair(seed, noise)
        with torch.inference_mode():
            matches.append(pair.target(text).logits.argmax(-1) == pair.draft(text).logits.argmax(-1))
    return torch.cat(matches).float().mean().item()


def test_noise_sets_how_often_draft_and_target_agree():
    none, some, much = agreement(0.0), agreement(0.4), agreement(2.0)
    assert none == 1.0
    assert 0.3 < some < 0.9
    assert much < 0.3


def test_the_seed_decides_every_weight():
    one, same, other = (random_pair(seed).target.lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_text_survives_the_tokenizer():
    tokenizer = ByteTokenizer()
    text = "Grüße, 世界 🙂\n"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.convert_ids_to_tokens(ids)] == ids
    assert sorted(tokenizer.get_vocab().values()) == list(range(260))


def test_a_small_vocabulary_stays_in_range():
    tokenizer = ByteTokenizer(16)
    assert max(tokenizer.encode("Hello")) < 16
    pair = random_pair(vocab_size=16)
    assert pair.vocab_size == pair.target.config.vocab_size == len(pair.tokenizer) == 16


def tiny_config(**fields):
    return PairConfig(
        name="tiny",
        source="tiny-random",
        target=Checkpoint(id="t", shape=tiny_shape(3)),
        draft=Checkpoint(id="d", shape=tiny_shape(1)),
        **fields,
    )


def test_the_configs_shapes_are_the_models_shapes():
    config = tiny_config()
    config.target.shape.hidden_size = config.draft.shape.hidden_size = 32
    pair = load_pair(config, dtype="bf16")
    assert pair.target.config.hidden_size == pair.draft.config.hidden_size == 32
    assert pair.target.dtype == pair.dtype == torch.bfloat16
    assert pair.random_weights


def test_a_tiny_target_alone_is_the_one_of_the_pair():
    pair, alone = load_pair(tiny_config()), load_pair(tiny_config(), with_draft=False)
    assert alone.draft is None and torch.equal(alone.target.lm_head.weight, pair.target.lm_head.weight)
    assert "draft" not in alone.identity and alone.identity.items() < pair.identity.items()


def test_a_draft_that_is_no_part_of_its_target_is_refused():
    config = tiny_config()
    config.draft.shape.hidden_size = 32
    with pytest.raises(UserError, match="hidden_size"):
        load_pair(config)


def test_a_shape_without_a_size_is_refused():
    config = replace(tiny_config(), draft=Checkpoint(id="d"))
    with pytest.raises(UserError, match=r"model_pair\.draft\.shape is not given"):
        load_pair(config)
