"""The compiled runtime on a CPU: transformers' numbers from fewer pieces, and the same ids in every decoding."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import generate_speculative
from gammatune.models.pairs import random_pair
from gammatune.policies import POLICIES
from gammatune.runtimes import native_library
from gammatune.runtimes.base import CachedModel, build_runtime, eager_runtime
from gammatune.runtimes.native import CHUNK, FIRST_POSITIONS, NativeModel, why_not_native
from gammatune.runtimes.native_library import NoLibraryError

try:
    native_library.find_compiler()
except NoLibraryError as missing:
    pytest.skip(str(missing), allow_module_level=True)

LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
PAIR = random_pair(seed=1, noise=0.3, vocab_size=40)
EAGER, COMPILED = eager_runtime(PAIR), build_runtime(PAIR, "compiled")


def tokens_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed))


def test_the_tiny_pair_is_compiled():
    assert COMPILED.name == "compiled"
    assert isinstance(COMPILED.target, NativeModel) and isinstance(COMPILED.draft, NativeModel)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=8),
    role=st.sampled_from(["target", "draft"]),
)
def test_logits_are_transformers_own(seed, steps, role):
    """Feeds of any size, each followed by a crop, as verification does."""
    model = getattr(PAIR, role)
    eager, native = CachedModel(model, 40), NativeModel(model, 40, PAIR.context)
    for size, dropped in steps:
        feed = tokens_of(seed + size, size)
        expected, got = eager.forward(feed, size), native.forward(feed, size)
        assert got.shape == expected.shape and got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for each in (eager, native):
            each.crop(max(1, each.length - dropped))
        assert eager.length == native.length


@pytest.fixture
def fresh_library():
    native_library.load_library.cache_clear()
    yield native_library
    native_library.load_library.cache_clear()


@pytest.mark.parametrize("processor", ["native", "x86-64-v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_block_length_and_a_prompt_longer_than_a_call(dtype, processor, fresh_library, monkeypatch):
    """One row of weights at a time, several, whole tiles of them, a processor without bf16: each is other code."""
    if processor != "native" and platform.machine() != "x86_64":
        pytest.skip("flags of another processor family")
    flags = [flag.replace("=native", f"={processor}") for flag in native_library.FLAGS]
    monkeypatch.setattr(native_library, "FLAGS", flags)
    pair = random_pair(seed=2, noise=0.3, vocab_size=40)
    model = pair.target.to(dtype)
    close = {torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    for size in [*range(1, 36), CHUNK + 5]:
        eager, native = CachedModel(model, 40), NativeModel(model, 40, 512)
        for start, count in ((1, 40), (2, size)):
            feed = tokens_of(start, count)
            expected, got = eager.forward(feed, count), native.forward(feed, count)
        torch.testing.assert_close(got, expected, rtol=0, atol=close)


def test_the_last_rows_of_a_long_prompt_are_the_ones_kept():
    eager, native = CachedModel(PAIR.target, 40), NativeModel(PAIR.target, 40, 512)
    feed = tokens_of(3, CHUNK + 40)
    for keep in (1, 39, 40, 41, 60):
        expected, got = eager.forward(feed, keep), native.forward(feed, keep)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        eager.reset(), native.reset()


def test_the_cache_grows_and_keeps_what_it_holds():
    """Past the first positions, and after a crop back below them."""
    pair = random_pair(seed=3, noise=0.3, vocab_size=40, context=4 * FIRST_POSITIONS)
    eager, native = CachedModel(pair.target, 40), NativeModel(pair.target, 40, pair.context)
    for size, back in ((FIRST_POSITIONS - 3, 0), (1, 0), (9, 2), (3 * FIRST_POSITIONS - 90, 0), (5, 2000), (7, 0)):
        feed = tokens_of(size, size)
        expected, got = eager.forward(feed, 1), native.forward(feed, 1)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
        for each in (eager, native):
            each.crop(each.length - back)
    assert native.capacity > FIRST_POSITIONS


def test_a_head_with_fewer_rows_speaks_those_alone():
    pair = random_pair(seed=4, noise=0.3, vocab_size=100, head=37)
    eager, native = eager_runtime(pair).draft, build_runtime(pair, "compiled").draft
    expected, got = eager.forward(tokens_of(1, 9), 2), native.forward(tokens_of(1, 9), 2)
    assert got.shape == (2, 37) and torch.equal(native.ids, eager.ids)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 100), budget=st.integers(1, 30))
def test_every_policy_gives_the_same_ids_and_rounds(name, seed, budget):
    prompt, policy = tokens_of(seed, 8).tolist(), POLICIES[name]()
    answers = []
    for runtime in (EAGER, COMPILED):
        policy.reset()
        answers.append(generate_speculative(runtime, prompt, policy, DecodeConfig(max_new_tokens=budget)))
    assert answers[0].output_ids == answers[1].output_ids
    assert [r.accepted for r in answers[0].rounds] == [r.accepted for r in answers[1].rounds]


def test_what_cannot_be_compiled_runs_eager_with_one_warning(capsys):
    half = random_pair(seed=1, noise=0.3, vocab_size=40)
    half.target.half()
    assert "float16" in why_not_native(half.target) and why_not_native(half.draft) == ""
    runtime = build_runtime(half, "compiled")
    assert runtime.name == "eager" and isinstance(runtime.target, CachedModel)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "running eager" in warning and "target" in warning and "draft" not in warning


def test_what_has_no_compiled_form_is_told():
    assert "no Llama" in why_not_native(torch.nn.Linear(2, 2))
    odd = random_pair(seed=1, noise=0.3, vocab_size=40)
    odd.target.config.hidden_act = "gelu"
    assert "activation" in why_not_native(odd.target)
    odd.draft.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "dynamic" in why_not_native(odd.draft)
    odd.draft.config.rope_parameters, odd.draft.config.intermediate_size = {"rope_type": "default"}, 100
    assert "multiples" in why_not_native(odd.draft)


def test_without_a_compiler_it_runs_eager_with_one_warning(fresh_library, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build_runtime(PAIR, "compiled").name == "eager"
    assert capsys.readouterr().err.count("no C++ compiler") == 2  # one warning, target and draft in it


def test_a_compiler_that_fails_is_quoted(fresh_library, monkeypatch, tmp_path):
    (tmp_path / "broken").write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "broken"))
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NoLibraryError, match="broken cannot compile the C\\+\\+ step: cannot do that"):
        fresh_library.load_library()


def test_it_is_compiled_once_and_again_for_another_processor(fresh_library, monkeypatch, tmp_path):
    compiler = fresh_library.find_compiler()
    path = fresh_library.compile_once(compiler, tmp_path)
    written = path.stat().st_mtime_ns
    assert fresh_library.compile_once(compiler, tmp_path) == path and path.stat().st_mtime_ns == written
    monkeypatch.setattr(fresh_library, "processor_features", lambda: "another processor")
    assert fresh_library.name_build(compiler) not in path.name


@pytest.mark.embedded
def test_the_embedded_pair_gives_the_same_ids(embedded_pair):
    prompt = embedded_pair.tokenizer.encode("The capital of France is")
    runtimes = eager_runtime(embedded_pair), build_runtime(embedded_pair, "compiled")
    assert runtimes[1].name == "compiled"
    for name in ("ar", "gammatune_plus", "fixed"):
        policy, made = POLICIES[name](), []
        for runtime in runtimes:
            policy.reset()
            made.append(generate_speculative(runtime, prompt, policy, DecodeConfig(max_new_tokens=24)))
        assert made[0].output_ids == made[1].output_ids
