"""What the two compiled runtimes share: one list of refusals, one KV cache that refuses what does not fit."""

import pytest
import torch
from llamas import VOCAB, compare, llama, odd_llama, qwen2, tokens_of
from transformers import Qwen3ForCausalLM

from gammatune.config import Shape
from gammatune.models.load import make_config
from gammatune.runtimes import cuda, layout, native
from gammatune.runtimes.cuda import GraphedModel, GraphSettings
from gammatune.runtimes.eager import EagerModel
from gammatune.runtimes.native import NativeModel
from gammatune.runtimes.native_library import NoLibraryError, find_compiler

PLAIN_STEPS = GraphSettings(most_tokens=9, span=16, capacity=32, capture=False, compiled=False)


def graphed(model, positions: int) -> GraphedModel:
    return GraphedModel(model, VOCAB, positions, settings=PLAIN_STEPS)


def compiled(model, positions: int) -> NativeModel:
    try:
        find_compiler()
    except NoLibraryError as missing:
        pytest.skip(str(missing))
    return NativeModel(model, VOCAB, positions)


@pytest.mark.parametrize("build", [graphed, compiled])
def test_what_does_not_fit_the_cache_is_refused_and_changes_nothing(build):
    """50 positions: neither a whole tile of keys nor a power of two."""
    model, eager = build(llama(), 50), EagerModel(llama(), VOCAB)
    compare(model, eager, tokens_of(0, 40), 1)
    for n in (11, 24, 300):
        with pytest.raises(ValueError, match=f"^{40 + n} tokens do not fit a cache of 50 positions.$"):
            model.forward(tokens_of(1, n), 1)
    assert model.length == 40
    compare(model, eager, tokens_of(2, 10), 99)  # as many logits as tokens, at most
    with pytest.raises(ValueError, match="51 tokens"):
        model.forward(tokens_of(3, 1), 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (torch.nn.Linear(2, 2), "Linear is no Llama and no Qwen2"),
        (
            Qwen3ForCausalLM(make_config(Shape(64, 128, 1, 4, 2, VOCAB, model_type="qwen3"))),
            "Qwen3ForCausalLM is no Llama and no Qwen2",
        ),
        (odd_llama(attention_bias=True), "its layers have biases other than those of queries, keys and values"),
        (odd_llama(mlp_bias=True), "its layers have biases other than those of queries, keys and values"),
        (
            qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "some of its layers see a part of the text only",
        ),
        (odd_llama(hidden_act="gelu"), "its activation is gelu, not silu"),
        (odd_llama("dynamic"), "its dynamic RoPE may depend on the text's length"),
        (odd_llama("longrope"), "its longrope RoPE may depend on the text's length"),
    ],
    ids=str,
)
def test_both_refuse_the_same_models_in_the_same_words(model, reason):
    assert layout.refusal(model) == cuda.refusal(model) == native.refusal(model) == reason


def test_a_quantised_layer_is_refused():
    model = llama()
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    assert native.refusal(model) == cuda.refusal(model) == "its layers are quantised in a form of their own"


@pytest.mark.parametrize("build", [graphed, compiled])
@pytest.mark.parametrize("head_size", [64, 128])
def test_biases_of_queries_keys_and_values_are_added(build, head_size):
    """Negative control: without them the logits are others."""
    model, eager = build(qwen2(head_size), 128), EagerModel(qwen2(head_size), VOCAB)
    for size in (40, 1, 2, 6, 17):
        got = compare(model, eager, tokens_of(size, size), size)
    bare = qwen2(head_size)
    for layer in bare.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.bias = None
    model, eager = build(bare, 128), EagerModel(bare, VOCAB)
    compare(model, eager, tokens_of(40, 40), 40)
    assert (compare(model, eager, tokens_of(17, 17), 17) - got).abs().median() > 0.1


@pytest.mark.parametrize("rope", layout.FIXED_ROPES)
def test_every_allowed_rope_gives_transformers_logits(rope):
    model = odd_llama(rope)
    assert layout.refusal(model) is None
    compare(graphed(model, 512), EagerModel(model, VOCAB), tokens_of(0, 300), 40)


def test_each_runtime_refuses_other_devices_than_its_own():
    assert cuda.refusal(llama()) == "its weights are on cpu, not on one CUDA device"
    assert native.refusal(llama().half()) == "weights in float16 on cpu have no C++ step"
    assert native.refusal(llama().to("meta")) == "weights in float32 on meta have no C++ step"


def test_parts_have_a_place_for_biases():
    parts = layout.layer_parts(odd_llama(attention_bias=True).model.layers[0])
    assert [linear.bias is None for linear in parts.linears] == [False] * 4 + [True] * 3
