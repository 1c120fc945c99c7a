"""Sampled output has the target's own distribution; a broken rule is noticed by the same test."""

import numpy as np
import pytest
import torch
from scipy import stats

from gammatune.decoding import sampling
from gammatune.decoding.loop import generate_speculative
from gammatune.decoding.sampling import Sampler
from gammatune.decoding.settings import DecodeConfig
from gammatune.models.pairs import random_pair
from gammatune.models.runtime import eager_runtime
from gammatune.policies import POLICIES

VOCAB = 8
DRAWS = 1500


@pytest.fixture(scope="module")
def runtime():
    runtime = eager_runtime(random_pair(seed=5, noise=0.6, vocab_size=VOCAB, context=64))
    runtime.pair.eos_ids = ()
    return runtime


def exact_pairs(runtime, prompt: list[int], decode: DecodeConfig) -> np.ndarray:
    """Probability [V * V] of the first two tokens under the target alone."""
    sampler = Sampler(decode, runtime.device)
    first = sampler.distribution(runtime.pair.target(torch.tensor([prompt])).logits[0, -1:])[0].double()
    table = torch.zeros(VOCAB, VOCAB, dtype=torch.double)
    for token in range(VOCAB):
        second = sampler.distribution(runtime.pair.target(torch.tensor([[*prompt, token]])).logits[0, -1:])[0].double()
        table[token] = first[token] * second
    return table.flatten().numpy()


def p_value(runtime, policy, decode: DecodeConfig) -> float:
    """Chi-square of the first two sampled tokens against the exact table; rare cells pooled."""
    prompt = [5, 6, 7]
    expected = exact_pairs(runtime, prompt, decode) * DRAWS
    observed = np.zeros(VOCAB * VOCAB)
    for seed in range(DRAWS):
        policy.reset()
        first, second = generate_speculative(runtime, prompt, policy, decode, seed).output_ids
        observed[first * VOCAB + second] += 1
    assert observed[expected == 0].sum() == 0
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    return chi_square(observed[keep], expected[keep])


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value; the expected counts are scaled to the observed sum, which differs by fp32 rounding only."""
    assert expected.sum() == pytest.approx(observed.sum(), rel=1e-5)
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("name", ["fixed", "gammatune_plus"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 4}], ids=str)
def test_sampled_output_has_the_targets_distribution(runtime, name, options):
    decode = DecodeConfig(max_new_tokens=2, **{"temperature": 1.0} | options)
    policy = POLICIES[name](gamma=1, **({"tau": 0.3} if name == "gammatune_plus" else {}))
    assert p_value(runtime, policy, decode) > 1e-6


def test_leaving_out_the_residual_is_noticed(runtime, monkeypatch):
    """Negative control: after a rejection draw from p instead of max(p - q, 0)."""
    monkeypatch.setattr(sampling, "residual", lambda target_probs, draft_probs: target_probs)
    assert p_value(runtime, POLICIES["fixed"](gamma=1), DecodeConfig(max_new_tokens=2, temperature=1.0)) < 1e-6


def test_accepting_against_another_draft_distribution_is_noticed(runtime, monkeypatch):
    """Negative control: tokens drawn from q, judged with a flattened q."""
    judge = Sampler.judge
    monkeypatch.setattr(Sampler, "judge", lambda self, p, q, tokens: judge(self, p, torch.full_like(q, 1 / VOCAB), tokens))
    assert p_value(runtime, POLICIES["fixed"](gamma=1), DecodeConfig(max_new_tokens=2, temperature=1.0)) < 1e-6


def test_judge_matches_the_rule_on_given_distributions():
    """One drafted token, 40,000 verdicts: acceptance rate sum(min(p, q)), output exactly p."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    q = torch.tensor([0.1, 0.6, 0.1, 0.2])
    sampler = Sampler(DecodeConfig(temperature=1.0), torch.device("cpu"), seed=1)
    counts, accepted = np.zeros(4), 0
    for _ in range(40_000):
        token = sampler.draw(q[None])
        stands, following = sampler.judge(torch.stack([p, p]), q[None], token).tolist()
        counts[int(token) if stands else following] += 1
        accepted += stands
    assert chi_square(counts, p.double().numpy() * 40_000) > 1e-6
    assert accepted / 40_000 == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.015)


def test_greedy_is_one_hot_sampling():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(DecodeConfig(), torch.device("cpu"))
    probs = sampler.distribution(logits)
    assert torch.equal(probs.sum(-1), torch.ones(3)) and torch.equal(sampler.draw(probs), logits.argmax(-1))


def test_warping_matches_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)) * 3
    decode = DecodeConfig(temperature=0.8, top_k=40, top_p=0.85)
    warped = logits
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(40), TopPLogitsWarper(0.85)):
        warped = warper(None, warped)
    ours = Sampler(decode, torch.device("cpu")).distribution(logits)
    torch.testing.assert_close(ours, warped.softmax(-1))


def test_the_same_seed_gives_the_same_answer(runtime):
    decode = DecodeConfig(max_new_tokens=30, temperature=1.0)
    runs = [generate_speculative(runtime, [5, 6], POLICIES["fixed"](gamma=3), decode, seed) for seed in (1, 1, 2)]
    assert runs[0].output_ids == runs[1].output_ids != runs[2].output_ids
