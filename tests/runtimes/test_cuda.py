"""The CUDA form of the compiled runtime, its step run here without a capture: transformers' numbers, and no host reads."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llamas import VOCAB, compare, llama, tokens_of
from torch.utils._python_dispatch import TorchDispatchMode

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import Engine, build_engine, generate_speculative
from gammatune.models.pair import Pair, random_pair
from gammatune.policies import POLICIES
from gammatune.policies.session import PolicySession
from gammatune.runtimes import cuda
from gammatune.runtimes.cuda import PLAIN, GraphedModel, GraphSettings
from gammatune.runtimes.eager import EagerModel

POSITIONS = 128
# Spans of 16, 32, 64 and 128 and a cache that starts with 32 positions: short feeds cross every border
SHORT = GraphSettings(most_tokens=9, span=16, capacity=32, capture=False, compiled=False)

MODELS = {"grouped": llama(), "one head for all": llama(1), "not grouped": llama(4), "tied": llama(tied=True)}
# Their own copies, since GraphedModel moves the weights of the one that it is given
REFERENCES = {"grouped": llama(), "one head for all": llama(1), "not grouped": llama(4), "tied": llama(tied=True)}


def both(name: str = "grouped") -> tuple[GraphedModel, EagerModel]:
    return GraphedModel(MODELS[name], VOCAB, POSITIONS, settings=SHORT), EagerModel(REFERENCES[name], VOCAB)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=9),
)
def test_logits_are_transformers_own(name, seed, steps):
    """Feeds of any size, longer than a graph takes included, each followed by a crop, as verification does."""
    graphed, eager = both(name)
    for size, keep, dropped in steps:
        compare(graphed, eager, tokens_of(seed + size, size), min(keep, size))
        for each in (graphed, eager):
            each.crop(max(1, each.length - dropped))


def test_stale_entries_are_hidden():
    """After a rejection the cache still holds what was rejected, after the positions that count."""
    graphed, eager = both()
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
    graphed, eager = both()
    for seed in (1, 2):
        graphed.reset()
        eager.reset()
        compare(graphed, eager, tokens_of(seed, 20), 1)
        compare(graphed, eager, tokens_of(seed, 4), 4)


def test_a_smaller_vocabulary_cuts_the_logits():
    graphed, eager = GraphedModel(MODELS["tied"], 30, POSITIONS, settings=SHORT), EagerModel(REFERENCES["tied"], 30)
    assert compare(graphed, eager, tokens_of(0, 5) % 30, 2).shape == (2, 30)


def test_earlier_logits_are_not_overwritten():
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=SHORT)
    first = graphed.forward(tokens_of(0, 3), 3)
    held = first.clone()
    graphed.forward(tokens_of(1, 3), 3)
    assert torch.equal(first, held)


def test_a_text_that_outgrows_the_cache_keeps_what_it_had():
    graphed, eager = both()
    compare(graphed, eager, tokens_of(0, 30), 1)
    assert graphed.capacity == 32
    compare(graphed, eager, tokens_of(1, 9), 9)
    assert graphed.capacity == 64 and graphed.graphs.keys() == {(9, 9, 64)}
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
    assert set(target.graphs) == {(n, n, span) for n in range(1, gamma_max + 2) for span in (16, 32, 64)}
    draft = GraphedModel(MODELS["tied"], VOCAB, POSITIONS, settings=SHORT)
    draft.warm([1, 2], keep=1, context=1)
    assert set(draft.graphs) == {(1, 1, 16), (2, 1, 16)} and draft.length == 0
    monkeypatch.setattr(GraphedModel, "try_compiled", lambda *_: pytest.fail("recorded after warm-up"))
    eager = EagerModel(REFERENCES["grouped"], VOCAB)
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
    assert torch.allclose(EagerModel(model, VOCAB).forward(tokens, 7), EagerModel(reference, VOCAB).forward(tokens, 7))
    again = GraphedModel(model, VOCAB, POSITIONS, settings=SHORT)
    assert again.layers[0].qkv.data_ptr() == layer.qkv.data_ptr() and torch.equal(again.layers[0].qkv, layer.qkv)


def graphed_engine(pair: Pair) -> Engine:
    """As build_engine makes it on CUDA."""
    rows = VOCAB if pair.draft_ids is None else len(pair.draft_ids)
    target, draft = (
        GraphedModel(model, columns, pair.context, SHORT) for model, columns in ((pair.target, VOCAB), (pair.draft, rows))
    )
    engine = build_engine(pair)
    engine.drafter.workplace.model = draft
    return replace(engine, target=target, runtime="compiled")


@pytest.mark.parametrize("name", ["ar", "gammatune_plus"])
@pytest.mark.parametrize("head", [None, 20], ids=["whole head", "reduced head"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100), budget=st.integers(1, 40))
def test_decoding_gives_the_same_ids_and_rounds(head, name, seed, budget):
    pair = random_pair(seed=1, noise=0.3, vocab_size=VOCAB, vocabulary=head)
    prompt, answers = tokens_of(seed, 8).tolist(), []
    for engine in (build_engine(pair), graphed_engine(pair)):
        session = PolicySession(POLICIES[name]())
        answers.append(generate_speculative(engine, prompt, session, DecodeConfig(max_new_tokens=budget)))
    assert answers[0].output_ids == answers[1].output_ids
    assert [r.accepted for r in answers[0].rounds] == [r.accepted for r in answers[1].rounds]
    assert graphed_engine(pair).target.records_graphs


def compiled_model() -> GraphedModel:
    settings = GraphSettings(most_tokens=9, span=16, capacity=128, capture=False)
    return GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=settings)


def test_the_pieces_are_compiled_once_for_all_counts(monkeypatch, capsys):
    """Everything of the compiler but its last stage, which would take most of the time."""
    monkeypatch.setattr(cuda.torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphed, eager = compiled_model(), EagerModel(REFERENCES["grouped"], VOCAB)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for n, keep in [(1, 1), (5, 5), (2, 1), (9, 9), (3, 3), (1, 1), (7, 7), (2, 2)]:
        compare(graphed, eager, tokens_of(n, n), keep)
    assert graphed.pieces is not PLAIN and capsys.readouterr().err == ""
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 6  # three pieces, for one token and for several


@pytest.mark.slow
def test_the_compiled_pieces_give_the_same_logits(capsys):
    """What runs inside the graphs on a GPU: the whole compiler, here for the CPU."""
    graphed, eager = compiled_model(), EagerModel(REFERENCES["grouped"], VOCAB)
    for n in (4, 7):
        compare(graphed, eager, tokens_of(n, n), n)
    assert graphed.pieces is not PLAIN and capsys.readouterr().err == ""


def test_where_the_compiler_fails_graphs_remain_with_one_warning(monkeypatch, capsys):
    def broken(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here\nand a long story")

    monkeypatch.setattr(cuda.torch, "compile", lambda *_, **__: broken)
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=GraphSettings(most_tokens=9, capture=False))
    eager = EagerModel(REFERENCES["grouped"], VOCAB)
    for n in (3, 4):
        compare(graphed, eager, tokens_of(n, n), n)
    warning = capsys.readouterr().err
    assert warning == "gammatune: CUDA graphs without torch.compile, which failed (no compiler here).\n"


def test_running_out_of_memory_is_no_reason_to_go_on(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(cuda.torch, "compile", lambda *_, **__: full)
    graphed = GraphedModel(MODELS["grouped"], VOCAB, POSITIONS, settings=GraphSettings(capture=False))
    with pytest.raises(torch.OutOfMemoryError):
        graphed.forward(tokens_of(0, 2), 1)
