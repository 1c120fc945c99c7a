"""The CUDA form of the compiled runtime, its step run here without a capture: transformers' numbers, and no host reads."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from gammatune.config import DecodeConfig, Shape
from gammatune.decoding.loop import generate_speculative
from gammatune.models.pairs import Pair, random_pair
from gammatune.models.tiny import TinySettings, build_tiny_models, llama_config
from gammatune.policies import POLICIES
from gammatune.runtimes import cuda as graphs
from gammatune.runtimes.base import CachedModel, PairRuntime, eager_runtime
from gammatune.runtimes.cuda import GraphedModel, GraphSettings
from gammatune.runtimes.cuda_layers import PLAIN, why_not_graphed, why_not_laid_out

VOCAB, POSITIONS = 40, 128
# Reaches of 16, 32, 64 and 128 and a cache that starts with 32 positions: short feeds cross every border
SHORT = GraphSettings(most_tokens=9, reach=16, room=32, capture=False, compiled=False)


def llama(kv_heads: int = 2, tied: bool = False, **extra) -> LlamaForCausalLM:
    shape = Shape(64, 128, 2, 4, kv_heads, VOCAB, POSITIONS, tie_word_embeddings=tied)
    if extra:
        return LlamaForCausalLM(llama_config(shape, **extra)).eval()
    return build_tiny_models(shape, shape, TinySettings(seed=3))[0].eval()


MODELS = {"grouped": llama(), "one head for all": llama(1), "not grouped": llama(4), "tied": llama(tied=True)}
# Their own copies, since GraphedModel moves the weights of the one that it is given
REFERENCES = {"grouped": llama(), "one head for all": llama(1), "not grouped": llama(4), "tied": llama(tied=True)}


def tokens_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def compare(graphed: GraphedModel, eager: CachedModel, tokens: torch.Tensor, keep: int) -> torch.Tensor:
    got, expected = graphed.forward(tokens, keep), eager.forward(tokens, keep)
    assert got.shape == expected.shape and got.dtype == torch.float32 and graphed.length == eager.length
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    return got


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=9),
)
def test_logits_are_transformers_own(name, seed, steps):
    """Feeds of any size, longer than a graph takes included, each followed by a crop, as verification does."""
    graphed = GraphedModel(MODELS[name], VOCAB, POSITIONS, settings=SHORT)
    eager = CachedModel(REFERENCES[name], VOCAB)
    for size, keep, dropped in steps:
        compare(graphed, eager, tokens_of(seed + size, size), min(keep, size))
        for each in (graphed, eager):
            each.crop(max(1, each.length - dropped))


def test_stale_entries_are_hidden():
    """After a rejection the cache still holds what was rejected, behind the positions that count."""
    graphed, eager = (
        GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT),
        CachedModel(REFERENCES["grouped"], VOCAB),
    )
    compare(graphed, eager, tokens_of(0, 8), 1)
    compare(graphed, eager, tokens_of(1, 8), 8)
    before = graphed.layers[0].keys[:, 6:16].clone()
    for each in (graphed, eager):
        each.crop(6)
    assert torch.equal(graphed.layers[0].keys[:, 6:16], before) and before.abs().sum() > 0
    compare(graphed, eager, tokens_of(2, 3), 3)
    assert torch.equal(graphed.layers[0].keys[:, 9:16], before[:, 3:])
    compare(graphed, eager, tokens_of(3, 1), 1)


def test_reset_starts_over():
    graphed, eager = (
        GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT),
        CachedModel(REFERENCES["grouped"], VOCAB),
    )
    for seed in (1, 2):
        graphed.reset()
        eager.reset()
        compare(graphed, eager, tokens_of(seed, 20), 1)
        compare(graphed, eager, tokens_of(seed, 4), 4)


def test_a_smaller_vocabulary_cuts_the_logits():
    graphed, eager = GraphedModel(MODELS["tied"], 30, POSITIONS, settings=SHORT), CachedModel(REFERENCES["tied"], 30)
    assert compare(graphed, eager, tokens_of(0, 5) % 30, 2).shape == (2, 30)


def test_earlier_logits_are_not_overwritten():
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT)
    first = graphed.forward(tokens_of(0, 3), 3)
    held = first.clone()
    graphed.forward(tokens_of(1, 3), 3)
    assert torch.equal(first, held)


def test_a_text_that_outgrows_the_cache_keeps_what_it_had():
    graphed, eager = (
        GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT),
        CachedModel(REFERENCES["grouped"], VOCAB),
    )
    compare(graphed, eager, tokens_of(0, 30), 1)
    assert graphed.room == 32
    compare(graphed, eager, tokens_of(1, 9), 9)
    assert graphed.room == 64 and graphed.graphs.keys() == {(9, 9, 64)}
    with pytest.raises(ValueError, match="129 tokens do not fit a cache of 128 positions"):
        graphed.forward(tokens_of(2, 90), 1)
    compare(graphed, eager, tokens_of(2, 2), 2)


def test_every_key_is_recorded_once():
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT)
    for _ in range(2):
        graphed.reset()
        for n, keep in [(3, 3), (3, 1), (2, 1), (9, 9), (3, 3)]:
            graphed.forward(tokens_of(n, n), keep)
    assert list(graphed.graphs) == [(3, 3, 16), (3, 1, 16), (2, 1, 16), (9, 9, 32), (3, 3, 32)]
    assert len({id(run) for run in graphed.graphs.values()}) == 5


def test_warm_records_what_a_run_will_ask_for(monkeypatch):
    gamma_max = 8
    target = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT)
    target.warm(range(1, gamma_max + 2), context=60)
    assert set(target.graphs) == {(n, n, reach) for n in range(1, gamma_max + 2) for reach in (16, 32, 64)}
    draft = GraphedModel(MODELS["tied"], VOCAB, POSITIONS, settings=SHORT)
    draft.warm([1, 2], keep=1)
    assert set(draft.graphs) == {(1, 1, 16), (2, 1, 16)} and draft.length == 0
    monkeypatch.setattr(GraphedModel, "try_compiled", lambda *_: pytest.fail("recorded after warm-up"))
    eager = CachedModel(REFERENCES["grouped"], VOCAB)
    for n in (9, 9, 9, 9, 9, 3, 1):
        compare(target, eager, tokens_of(n, n), n)


class NoHostReads(TorchDispatchMode):
    """Refuses every operation that waits for a device to hand a value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


def test_a_forward_reads_nothing_back(monkeypatch):
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT)
    with NoHostReads(), pytest.raises(AssertionError):
        torch.ones(1).item()
    for name in ("item", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} waits for the device"))
    with NoHostReads():
        for size in (12, 1, 5, 9, 9):
            graphed.forward(tokens_of(size, size), size)
            graphed.crop(graphed.length - 1)


def test_eager_and_graphed_share_the_weights():
    model, reference = llama(), llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graphed = GraphedModel(model, VOCAB, POSITIONS, settings=SHORT)
    attention, mlp, layer = model.model.layers[0].self_attn, model.model.layers[0].mlp, graphed.layers[0]
    for linear, fused in ((attention.k_proj, layer.qkv), (attention.v_proj, layer.qkv), (mlp.up_proj, layer.gate_up)):
        assert linear.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    tokens = tokens_of(0, 7)
    assert torch.allclose(CachedModel(model, VOCAB).forward(tokens, 7), CachedModel(reference, VOCAB).forward(tokens, 7))
    again = GraphedModel(model, VOCAB, POSITIONS, settings=SHORT)
    assert again.layers[0].qkv.data_ptr() == layer.qkv.data_ptr() and torch.equal(again.layers[0].qkv, layer.qkv)


def graphed_runtime(pair: Pair) -> PairRuntime:
    target = GraphedModel(pair.target, VOCAB, pair.context, settings=SHORT)
    return PairRuntime(pair, target, GraphedModel(pair.draft, VOCAB, pair.context, pair.draft_ids, SHORT), name="compiled")


PAIRS = [random_pair(seed=1, noise=0.3, vocab_size=VOCAB, head=head) for head in (None, 20)]


@pytest.mark.parametrize("name", [name for name, option in POLICIES.items() if not option.rule.oracle])
@pytest.mark.parametrize("pair", PAIRS, ids=["whole head", "reduced head"])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 100), budget=st.integers(1, 40))
def test_decoding_gives_the_same_ids_and_rounds(pair, name, seed, budget):
    prompt, answers = tokens_of(seed, 8).tolist(), []
    for runtime in (eager_runtime(pair), graphed_runtime(pair)):
        answers.append(generate_speculative(runtime, prompt, POLICIES[name](), DecodeConfig(max_new_tokens=budget)))
    assert answers[0].output_ids == answers[1].output_ids
    assert [r.counts() for r in answers[0].rounds] == [r.counts() for r in answers[1].rounds]


def test_a_pair_is_warmed_as_its_loop_feeds_it():
    runtime = graphed_runtime(PAIRS[0])
    runtime.warm(4, 40)
    assert {n for n, _, _ in runtime.target.graphs} == {1, 2, 3, 4, 5}
    assert {(n, keep) for n, keep, _ in runtime.draft.graphs} == {(1, 1), (2, 1)}
    eager_runtime(PAIRS[0]).warm(4, 40)  # nothing to record


def compiled_model() -> GraphedModel:
    settings = GraphSettings(most_tokens=9, reach=16, room=128, capture=False)
    return GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=settings)


def test_the_pieces_are_compiled_once_for_all_counts(monkeypatch, capsys):
    """Everything of the compiler but its last stage, which would take most of the time."""
    monkeypatch.setattr(graphs.torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphed, eager = compiled_model(), CachedModel(REFERENCES["grouped"], VOCAB)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for n, keep in [(1, 1), (5, 5), (2, 1), (9, 9), (3, 3), (1, 1), (7, 7), (2, 2)]:
        compare(graphed, eager, tokens_of(n, n), keep)
    assert graphed.pieces is not PLAIN and capsys.readouterr().err == ""
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 6  # three pieces, for one token and for several


def test_the_compiled_pieces_give_the_same_logits(capsys):
    """What runs inside the graphs on a GPU: the whole compiler, here for the CPU."""
    graphed, eager = compiled_model(), CachedModel(REFERENCES["grouped"], VOCAB)
    for n in (4, 7):
        compare(graphed, eager, tokens_of(n, n), n)
    assert graphed.pieces is not PLAIN and capsys.readouterr().err == ""


def test_where_the_compiler_fails_graphs_remain_with_one_warning(monkeypatch, capsys):
    def broken(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here\nand a long story")

    monkeypatch.setattr(graphs.torch, "compile", lambda *_, **__: broken)
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=GraphSettings(most_tokens=9, capture=False))
    eager = CachedModel(REFERENCES["grouped"], VOCAB)
    for n in (3, 4):
        compare(graphed, eager, tokens_of(n, n), n)
    warning = capsys.readouterr().err
    assert warning == "gammatune: CUDA graphs without torch.compile, which failed (no compiler here).\n"


def test_running_out_of_memory_is_no_reason_to_go_on(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(graphs.torch, "compile", lambda *_, **__: full)
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=GraphSettings(capture=False))
    with pytest.raises(torch.OutOfMemoryError):
        graphed.forward(tokens_of(0, 2), 1)


def test_what_has_no_graphs_says_why():
    assert why_not_graphed(torch.nn.Linear(2, 2)) == "Linear is no Llama"
    assert why_not_graphed(llama()) == "its weights are on cpu, not on one CUDA device"
    assert why_not_laid_out(llama()) == ""
    assert why_not_laid_out(llama(attention_bias=True)) == "its layers have biases or another activation"
    quantised = llama()
    quantised.model.layers[0].self_attn.q_proj = torch.nn.Identity()
    assert why_not_laid_out(quantised) == "its layers are quantised"
    stretched = llama()
    stretched.model.rotary_emb.rope_type = "dynamic"
    assert "dynamic rotary embedding" in why_not_laid_out(stretched)
