"""RoPE frequencies stay in fp32 whatever the weights are: in 16 bit, their phase error grows with distance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_borrowing_draft import save_draft

from gammatune.config import Checkpoint, PairConfig
from gammatune.models.pair import load_pair
from gammatune.models.tiny import tiny_shape


def frequencies(pair):
    return [
        tensor for model in (pair.target, pair.draft) for name, tensor in model.named_buffers() if name.endswith("inv_freq")
    ]


@pytest.fixture
def configs(make_checkpoint, make_pair_config, tmp_path):
    """A PairConfig for every way in which weights come about, each also with a reduced draft vocabulary."""
    save_draft(tmp_path / "borrowing")
    np.save(tmp_path / "ranking.npy", np.arange(259))
    target = make_checkpoint("target", tie_word_embeddings=True)
    ranking = str(tmp_path / "ranking.npy")
    borrowed = Checkpoint(path=str(tmp_path / "borrowing"), ranking=ranking, borrows_tables=True)
    shapes = {role: Checkpoint(role, shape=tiny_shape(layers)) for role, layers in (("target", 2), ("draft", 1))}
    whole = {
        "folders": make_pair_config(target, make_checkpoint("draft", num_hidden_layers=1)),
        "borrowed": PairConfig(name="b", target=Checkpoint("t", path=str(target)), draft=borrowed),
        "random": PairConfig(name="r", weights="random", **shapes),
        "tiny": PairConfig(name="t", source="tiny-random", **shapes),
    }
    whole["folders"].draft.ranking = ranking
    reduced = {f"{name} reduced": replace(c, draft=replace(c.draft, vocabulary=20)) for name, c in whole.items()}
    return whole | reduced


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_frequencies_are_those_of_the_fp32_models(configs, dtype):
    for name, config in configs.items():
        pair, exact = load_pair(config, dtype=dtype), load_pair(config, dtype="fp32")
        found = frequencies(pair)
        assert len(found) == 4 and pair.draft.dtype == pair.dtype != torch.float32, name
        for one, other in zip(found, frequencies(exact), strict=True):
            assert one.dtype == torch.float32 and torch.equal(one, other), name


def test_far_positions_are_where_fp32_frequencies_put_them(configs):
    """Two tokens 400 positions apart: the logits of 16-bit weights with frequencies computed here, and no others."""
    model, tokens = load_pair(configs["tiny"], dtype="bf16").draft, torch.tensor([[70, 90]])
    rope, dim = model.model.rotary_emb, model.config.head_dim

    @torch.inference_mode()
    def forward():
        return model(tokens, position_ids=torch.tensor([[0, 400]])).logits[0, -1]

    logits = forward()
    rope.inv_freq = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    assert torch.equal(forward(), logits)
    rope.inv_freq = rope.inv_freq.bfloat16()
    assert not torch.equal(forward(), logits)
