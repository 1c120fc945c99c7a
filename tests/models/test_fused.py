"""The compiled runtime on a CPU: transformers' numbers from fewer pieces, and the same ids in every decoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gammatune.decoding.loop import generate_speculative
from gammatune.decoding.settings import DecodeConfig
from gammatune.models.fused import FusedModel, causal_mask, why_not_fused
from gammatune.models.pairs import random_pair
from gammatune.models.runtime import CachedModel, build_runtime, eager_runtime
from gammatune.policies import POLICIES

LIVE = [name for name, rule in POLICIES.items() if not rule.needs_foresight]
PAIR = random_pair(seed=1, noise=0.3, vocab_size=40)
EAGER, COMPILED = eager_runtime(PAIR), build_runtime(PAIR, "compiled")


def tokens_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed))


def test_the_tiny_pair_is_fused():
    assert COMPILED.name == "compiled" and isinstance(COMPILED.target, FusedModel) and isinstance(COMPILED.draft, FusedModel)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=8),
    role=st.sampled_from(["target", "draft"]),
)
def test_logits_are_transformers_own(seed, steps, role):
    """Feeds of any size, each followed by a crop, as verification does."""
    model = getattr(PAIR, role)
    eager, fused = CachedModel(model, 40), FusedModel(model, 40, PAIR.context)
    for size, dropped in steps:
        feed = tokens_of(seed + size, size)
        expected, got = eager.forward(feed, size), fused.forward(feed, size)
        assert got.shape == expected.shape and got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for each in (eager, fused):
            each.crop(max(1, each.length - dropped))
        assert eager.length == fused.length


def test_the_mask_lets_a_token_see_itself_and_what_was_before():
    assert causal_mask(4, 5) is None
    assert causal_mask(1, 3).tolist() == [[True, True, False], [True, True, True]]


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


def test_what_cannot_be_fused_runs_eager_with_one_warning(capsys):
    half = random_pair(seed=1, noise=0.3, vocab_size=40)
    half.target.half()
    assert "float16" in why_not_fused(half.target) and why_not_fused(half.draft) == ""
    runtime = build_runtime(half, "compiled")
    assert runtime.name == "eager" and isinstance(runtime.target, CachedModel)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "running eager" in warning and "target" in warning and "draft" not in warning


def test_a_layer_with_biases_or_another_class_is_told():
    assert "no Llama" in why_not_fused(torch.nn.Linear(2, 2))


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
