"""The compiled runtime on a CPU: transformers' numbers by the C++ step, and the same bits however few tokens are fed."""

import platform
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llamas import VOCAB, compare, llama, odd_llama, qwen2, tokens_of
from torch import nn

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import build_engine, generate_speculative
from gammatune.models.int8 import quantise
from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES
from gammatune.policies.session import PolicySession
from gammatune.runtimes import native, native_library
from gammatune.runtimes.base import build_models
from gammatune.runtimes.eager import EagerModel
from gammatune.runtimes.native import CHUNK, FIRST_POSITIONS, NativeModel
from gammatune.runtimes.native_library import NoLibraryError

try:
    native_library.find_compiler()
except NoLibraryError as missing:
    pytest.skip(str(missing), allow_module_level=True)

MODEL = llama(context=4 * FIRST_POSITIONS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=8),
)
def test_logits_are_transformers_own(seed, steps):
    """Feeds of any size, each followed by a crop, as verification does."""
    eager, model = EagerModel(MODEL, VOCAB), NativeModel(MODEL, VOCAB, 128)
    for size, dropped in steps:
        compare(model, eager, tokens_of(seed + size, size), size)
        for each in (eager, model):
            each.crop(max(1, each.length - dropped))
        assert eager.length == model.length


def int8_qwen2() -> nn.Module:
    return quantise(qwen2())


def check_every_block_length(dtype: torch.dtype, make: Callable = llama) -> None:
    model = cast_floats(make(), dtype)
    close = {torch.float32: 2e-3 if make is int8_qwen2 else 1e-4, torch.bfloat16: 0.3}[dtype]
    for size in (*range(1, 8), 12, 13, 16, 17, 32, 33, CHUNK + 5):
        eager, compiled = EagerModel(model, VOCAB), NativeModel(model, VOCAB, 512)
        compare(compiled, eager, tokens_of(1, 40), 40, close)
        compare(compiled, eager, tokens_of(2, size), size, close)


def cast_floats(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights in int8 and their scales stay, RoPE frequencies too."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


@DTYPES
@pytest.mark.parametrize("make", [llama, qwen2, int8_qwen2])
def test_every_block_length_and_a_prompt_longer_than_a_call(dtype, make):
    """One row of weights at a time, several, whole tiles of them: each is other code."""
    check_every_block_length(dtype, make)


@pytest.fixture
def fresh_library():
    native_library.load_library.cache_clear()
    yield native_library
    native_library.load_library.cache_clear()


@pytest.mark.slow
@DTYPES
def test_a_processor_without_bfloat16_and_tiles(dtype, fresh_library, monkeypatch):
    if platform.machine() != "x86_64":
        pytest.skip("flags of another processor family")
    flags = [flag.replace("=native", "=x86-64-v3") for flag in native_library.FLAGS]
    monkeypatch.setattr(native_library, "FLAGS", flags)
    for make in (llama, int8_qwen2):
        check_every_block_length(dtype, make)
        check_any_feed(dtype, make)


def feed(model: NativeModel, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """All logits [n, VOCAB] of the tokens, fed in blocks of these sizes, over and over."""
    model.reset()
    rows = []
    while model.length < len(tokens):
        block = tokens[model.length :][: sizes[len(rows) % len(sizes)]]
        rows.append(model.forward(block, len(block)))
    return torch.cat(rows)


@DTYPES
def test_one_token_at_a_time_or_two_or_mixed_give_the_same_bits(dtype):
    """A draft lives on feeds of one and two tokens, a recorded table on feeds of one: their signals must be equal."""
    model, tokens = NativeModel(qwen2().to(dtype), VOCAB, 128), tokens_of(0, 100)
    ones = feed(model, tokens, [1])
    for sizes in ([2], [1, 2], [2, 2, 1]):
        assert torch.equal(feed(model, tokens, sizes), ones), sizes
    model.forward(tokens_of(1, 2), 2)
    model.crop(98)  # what was rejected stays in the cache after the length
    assert torch.equal(model.forward(tokens[98:99], 1), ones[98:99])


def check_any_feed(dtype: torch.dtype, make: Callable = llama) -> None:
    model, tokens = NativeModel(cast_floats(make(), dtype), VOCAB, 128), tokens_of(0, 100)
    ones = feed(model, tokens, [1])
    for size in (3, 5, 6, 7, 16, 40):
        assert torch.equal(feed(model, tokens, [size]), ones), size


def test_in_float_any_feed_gives_the_same_bits():
    check_any_feed(torch.float32)


@DTYPES
def test_with_weights_in_int8_any_feed_gives_the_same_bits(dtype):
    """By vectors and by tiles, one after the other: a verification's logits are those of single steps."""
    check_any_feed(dtype, int8_qwen2)


def test_a_number_that_is_not_finite_stays_so_in_int8():
    model = int8_qwen2()
    model.model.embed_tokens.weight[5, 3] = torch.nan
    compiled = NativeModel(model, VOCAB, 128)
    assert compiled.forward(torch.tensor([4, 6, 7]), 3).isfinite().all()
    for tokens in (torch.tensor([5]), torch.tensor([5, 7, 9])):
        assert compiled.forward(tokens, 3).isnan().all()


@DTYPES
def test_threads_may_change_at_any_time_and_change_no_bit(dtype):
    model, tokens = NativeModel(llama().to(dtype), VOCAB, 128), tokens_of(0, 60)
    assert model.threads == torch.get_num_threads()
    expected = feed(model, tokens, [20])
    for threads in (2, 3, 1):
        model.threads = threads
        assert torch.equal(feed(model, tokens, [20]), expected)


def test_the_last_rows_of_a_long_prompt_are_the_ones_kept():
    eager, model = EagerModel(MODEL, VOCAB), NativeModel(MODEL, VOCAB, 512)
    for keep in (0, 1, 39, 40, 41, 60):
        got = model.forward(tokens_of(3, CHUNK + 40), keep)
        eager.reset()
        expected = eager.forward(tokens_of(3, CHUNK + 40), 60)[60 - keep :]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        model.reset()


@DTYPES
def test_features_are_what_enters_the_final_norm(dtype):
    """Of all tokens fed, in one call and in several; logits keep their bits."""
    model, tokens = cast_floats(qwen2(), dtype), tokens_of(4, CHUNK + 9)
    eager, plain, kept = EagerModel(model, VOCAB), NativeModel(model, VOCAB, 512), NativeModel(model, VOCAB, 512)
    for each in (eager, kept):
        each.keep_features()
    close = {torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    for fed in (tokens, tokens[:1], tokens[:7]):
        assert torch.equal(kept.forward(fed, 1), plain.forward(fed, 1))
        eager.forward(fed, 1)
        torch.testing.assert_close(kept.features, eager.features.float(), rtol=close, atol=close)
    assert plain.features is None


def test_the_cache_grows_and_keeps_what_it_holds():
    """Past the first positions, and after a crop back below them."""
    eager, model = EagerModel(MODEL, VOCAB), NativeModel(MODEL, VOCAB, 4 * FIRST_POSITIONS)
    for size, back in ((FIRST_POSITIONS - 3, 0), (1, 0), (9, 2), (FIRST_POSITIONS, 0), (5, 2000), (7, 0)):
        compare(model, eager, tokens_of(size, size), 1, close=1e-3)
        for each in (eager, model):
            each.crop(each.length - back)
    assert model.capacity > FIRST_POSITIONS


def test_a_token_without_an_embedding_is_refused():
    model, eager = NativeModel(MODEL, VOCAB, 128), EagerModel(MODEL, VOCAB)
    for token in (VOCAB, -1, 2**40):
        with pytest.raises(IndexError, match="A token is outside the 40 that the model has embeddings for"):
            model.forward(torch.tensor([5, token]), 1)
    compare(model, eager, tokens_of(0, 3), 3)


def test_tokens_of_another_type_or_stride_are_read_as_what_they_are():
    model, tokens = NativeModel(MODEL, VOCAB, 128), tokens_of(0, 9)
    expected = model.forward(tokens, 9)
    for other in (tokens.int(), torch.stack([tokens, tokens + 1], dim=1)[:, 0]):
        model.reset()
        assert torch.equal(model.forward(other, 9), expected)


def test_a_head_with_fewer_rows_gives_those_alone():
    pair = random_pair(seed=4, noise=0.3, vocab_size=100, vocabulary=37)
    eager = EagerModel(pair.draft, 37)
    model = build_models(pair, "compiled").draft
    assert isinstance(model, NativeModel) and compare(model, eager, tokens_of(1, 9), 2).shape == (2, 37)


@pytest.mark.parametrize("name", ["ar", "fixed", "gammatune_plus"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100), budget=st.integers(1, 30))
def test_decoding_gives_the_same_ids_and_rounds(name, seed, budget):
    pair, prompt, answers = random_pair(seed=1, noise=0.3, vocab_size=VOCAB), tokens_of(seed, 8).tolist(), []
    for engine in (build_engine(pair), build_engine(pair, "compiled")):
        session = PolicySession(POLICIES[name]())
        answers.append(generate_speculative(engine, prompt, session, DecodeConfig(max_new_tokens=budget)))
    assert engine.runtime == "compiled"
    assert answers[0].output_ids == answers[1].output_ids
    assert [r.accepted for r in answers[0].rounds] == [r.accepted for r in answers[1].rounds]


def test_what_cannot_be_compiled_runs_eager_with_one_warning(capsys):
    half = random_pair(seed=1, noise=0.3, vocab_size=VOCAB)
    half.target.half()
    assert native.refusal(half.draft) is None
    models = build_models(half, "compiled")
    assert models.runtime == "eager" and isinstance(models.target, EagerModel)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "running eager" in warning and "float16" in warning and "draft" not in warning


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("make", [llama, partial(llama, tied=True), qwen2, int8_qwen2])
def test_released_weights_are_held_once(make, late):
    """After the copy or layer by layer; a second model can still be made of them, and eager once they are restored."""
    model, tokens = make(), tokens_of(0, 20)
    expected = NativeModel(make(), VOCAB, 128).forward(tokens, 20)
    compiled = NativeModel(model, VOCAB, 128, release=not late)
    if late:
        compiled.release()
    sizes = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    held = sum(sizes.values())
    laid_out = sum(matrix.panels.nbytes for layer in compiled.weights for matrix in layer.matrices)
    others = sum(p.nbytes for p in model.parameters() if p.dim() < 4)
    assert held == laid_out + compiled.lm_head.panels.nbytes + others
    assert model.lm_head.weight.data_ptr() == compiled.lm_head.panels.data_ptr()
    assert torch.equal(compiled.forward(tokens, 20), expected)
    assert torch.equal(NativeModel(model, VOCAB, 128).forward(tokens, 20), expected)
    native.restore(model)
    assert torch.equal(EagerModel(model, VOCAB).forward(tokens, 20), EagerModel(make(), VOCAB).forward(tokens, 20))


def test_odd_widths_are_refused():
    odd = odd_llama()
    odd.config.intermediate_size = 96
    assert native.refusal(odd) is None
    assert native.refusal(quantise(odd)) == "its widths are no multiples of 64 or its heads no multiples of 16"
    odd.config.intermediate_size = 100


def test_without_a_compiler_it_runs_eager_with_one_warning(fresh_library, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build_models(random_pair(vocab_size=VOCAB), "compiled").runtime == "eager"
    assert capsys.readouterr().err.count("no C++ compiler") == 2  # one warning, target and draft in it


@pytest.mark.embedded
def test_the_embedded_pair_gives_the_same_ids(embedded_pair):
    prompt = embedded_pair.tokenizer.encode("The capital of France is")
    engines = build_engine(embedded_pair), build_engine(embedded_pair, "compiled")
    assert engines[1].runtime == "compiled"
    for name in ("ar", "gammatune_plus"):
        sessions = PolicySession(POLICIES[name]()), PolicySession(POLICIES[name]())
        decode = DecodeConfig(max_new_tokens=12)
        made = [generate_speculative(*engine, decode) for engine in zip(engines, (prompt, prompt), sessions, strict=True)]
        assert made[0].output_ids == made[1].output_ids
