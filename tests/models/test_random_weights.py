"""weights=random: the true shapes of a pair without its checkpoints."""

from dataclasses import replace

import pytest
import torch

from gammatune.config import Checkpoint, PairConfig
from gammatune.errors import UserError
from gammatune.models.pair import load_pair
from gammatune.models.tiny import ByteTokenizer, tiny_shape


@pytest.fixture
def config():
    target = Checkpoint(id="somebody/large", shape=tiny_shape(4, vocab_size=320))
    small = replace(tiny_shape(2, vocab_size=300, context=256), tie_word_embeddings=True)
    draft = Checkpoint(id="somebody/small", shape=small)
    return PairConfig(name="pair", weights="random", target=target, draft=draft)


def test_shapes_are_true_and_the_pair_is_marked(config):
    pair = load_pair(config, dtype="bf16")
    assert (len(pair.target.model.layers), len(pair.draft.model.layers)) == (4, 2)
    assert {p.dtype for model in (pair.target, pair.draft) for p in model.parameters()} == {torch.bfloat16}
    assert (pair.vocab_size, pair.context, pair.random_weights, pair.chat_template) == (300, 256, True, "plain")
    assert isinstance(pair.tokenizer, ByteTokenizer)
    assert all(i < pair.vocab_size for i in pair.eos_ids)
    with torch.inference_mode():
        assert torch.isfinite(pair.target(torch.tensor([pair.tokenizer.encode("Hi")])).logits).all()


def test_a_target_alone_needs_no_shape_of_a_draft(config):
    alone = load_pair(replace(config, draft=Checkpoint()), with_draft=False)
    assert (alone.draft, alone.vocab_size, alone.context) == (None, 320, 512)
    assert torch.equal(alone.target.lm_head.weight, load_pair(config).target.lm_head.weight)
    with pytest.raises(UserError, match="model_pair.draft.shape is not given"):
        load_pair(replace(config, draft=Checkpoint()))


def test_the_callers_random_state_is_untouched_and_weights_repeat(config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load_pair(config).target.lm_head.weight
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(load_pair(config).target.lm_head.weight, one)


def test_the_tokenizer_of_a_local_folder_is_used(config, make_checkpoint):
    config.target.path = str(make_checkpoint("target"))
    pair = load_pair(config)
    assert pair.tokenizer.decode(pair.tokenizer.encode("abc")) == "abc"
    assert pair.chat_template == "tokenizer"
    config.draft.shape.vocab_size = 100
    with pytest.raises(UserError, match="has 259 tokens, but the shapes hold 100"):
        load_pair(config)


def test_quantised_random_weights_are_refused(config):
    config.target.quantization = "int8"
    with pytest.raises(UserError, match="are not quantised"):
        load_pair(config)
