"""Weights in int8: as near as a byte allows, the same rows whatever is cut, and a pair of its own."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from gammatune.models.draft_vocabulary import cut_lm_head
from gammatune.models.int8 import Int8Linear, quantise, quantise_linear
from gammatune.models.pair import load_pair, random_pair, settle_quantization
from gammatune.runtimes.base import build_models

GENERATOR = torch.Generator().manual_seed(0)


def linear(rows: int, columns: int, bias: bool = False) -> nn.Linear:
    made = nn.Linear(columns, rows, bias=bias).requires_grad_(False)
    made.weight.normal_(generator=GENERATOR).mul_(torch.rand(rows, 1, generator=GENERATOR))
    return made


def test_a_weight_moves_by_half_a_scale_at_most_and_a_row_of_zeros_not_at_all():
    wide = linear(5000, 8)  # more rows than are taken at a time
    wide.weight[4321] = 0
    narrow = quantise_linear(wide)
    moved = (narrow.weight * narrow.scales[:, None] - wide.weight).abs()
    assert narrow.weight.dtype == torch.int8 and narrow.weight.abs().amax(dim=1).unique().tolist() == [0, 127]
    assert (moved <= narrow.scales[:, None] * 0.5001).all() and moved[4321].max() == 0


def test_a_forward_is_that_of_the_weights_it_stands_for():
    wide, x = linear(16, 64, bias=True), torch.randn(3, 64, generator=GENERATOR)
    narrow = quantise_linear(wide)
    expected = F.linear(x, narrow.weight * narrow.scales[:, None], wide.bias)
    torch.testing.assert_close(narrow(x), expected)
    for dtype, close in ((torch.bfloat16, 0.1), (torch.float16, 0.01)):
        narrow.bias = nn.Parameter(wide.bias.to(dtype), requires_grad=False)
        torch.testing.assert_close(narrow(x.to(dtype)), expected.to(dtype), atol=close, rtol=close)
    assert (wide(x) - expected).abs().max() > 1e-3  # negative control


def test_rows_can_be_cut_before_or_after():
    whole, ids = random_pair(seed=1, vocab_size=40).draft, torch.tensor([3, 5, 31])
    cut = quantise(cut_lm_head(whole, ids)).lm_head
    other = cut_lm_head(quantise(whole), ids).lm_head
    assert torch.equal(cut.weight, other.weight) and torch.equal(cut.scales, other.scales) and cut.out_features == 3


def test_a_tied_embedding_stays_as_it_is(make_checkpoint, make_pair_config):
    folders = make_checkpoint("target", tie_word_embeddings=True), make_checkpoint("draft", num_hidden_layers=1)
    config = make_pair_config(*folders)
    whole = load_pair(config)
    pair = load_pair(replace(config, target=replace(config.target, quantization="int8")))
    linears = [module for module in pair.target.modules() if isinstance(module, nn.Linear)]
    assert all(type(module) is Int8Linear for module in linears) and len(linears) == 7 * len(pair.target.model.layers) + 1
    assert torch.equal(pair.target.model.embed_tokens.weight, whole.target.model.embed_tokens.weight)
    assert pair.target.dtype == torch.float32 and not any(type(module) is Int8Linear for module in pair.draft.modules())
    assert not any(parameter.requires_grad for parameter in pair.target.parameters())


def test_both_runtimes_read_the_same_weights():
    tokens, made = torch.arange(4, 30), []
    for name in ("eager", "compiled"):
        pair = random_pair(seed=1, vocab_size=40, vocabulary=7)
        models = build_models(replace(pair, target=quantise(pair.target), draft=quantise(pair.draft)), name)
        made.append([models.target.forward(tokens, 20), models.draft.forward(tokens, 20)])
    for eager, compiled in zip(*made, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=2e-3, atol=2e-3)


def test_quantisation_on_a_cpu_alone(make_checkpoint, make_pair_config):
    """A pair says what it holds, and has no other hash than one that names int8 outright."""
    config = make_pair_config(make_checkpoint("target"), make_checkpoint("draft", num_hidden_layers=1))
    pair = load_pair(replace(config, draft=replace(config.draft, cpu_quantization="int8")))
    assert pair.quantization == (None, "int8") and type(pair.draft.lm_head) is Int8Linear
    assert type(pair.target.lm_head) is nn.Linear
    there = settle_quantization(replace(config, draft=replace(config.draft, cpu_quantization="int8")), torch.device("cuda"))
    assert there.draft.quantization is None
    named = load_pair(replace(config, draft=replace(config.draft, quantization="int8")))
    assert (named.quantization, named.identity) == (pair.quantization, pair.identity)
    assert load_pair(config, with_draft=False).quantization == (None, None)
