"""Sampled output has the target's own distribution; a broken rule is noticed by the same test."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from gammatune.config import DecodeConfig
from gammatune.decoding import sampling
from gammatune.decoding.loop import generate_speculative
from gammatune.decoding.sampling import GreedySampler, Sampler, find_best, make_sampler, measure_thought
from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES
from gammatune.runtimes.base import eager_runtime

VOCAB = 8
DRAWS = 1500


def make_runtime(head: int | None = None):
    runtime = eager_runtime(random_pair(seed=5, noise=0.6, vocab_size=VOCAB, context=64, vocabulary=head))
    runtime.pair.eos_ids = ()
    return runtime


@pytest.fixture(scope="module")
def runtime():
    return make_runtime()


@pytest.fixture(scope="module")
def reduced():
    """A draft that can say four of eight tokens."""
    return make_runtime(head=4)


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


@pytest.mark.parametrize(
    ("name", "options"), [("fixed", {}), ("gammatune_plus", {"temperature": 0.7, "top_p": 0.9})], ids=str
)
def test_so_it_has_with_a_draft_that_lacks_tokens(reduced, name, options):
    decode = DecodeConfig(max_new_tokens=2, **{"temperature": 1.0} | options)
    policy = POLICIES[name](gamma=1, **({"tau": 0.3} if name == "gammatune_plus" else {}))
    expected = exact_pairs(reduced, [5, 6, 7], decode).reshape(VOCAB, VOCAB).sum(axis=1)
    assert np.delete(expected, reduced.draft.ids).sum() > 0.1, "the target must like tokens that the draft cannot say"
    assert p_value(reduced, policy, decode) > 1e-6


def test_a_draft_distribution_that_is_spread_wrong_is_noticed(reduced, monkeypatch):
    """Negative control: the draft's probabilities under the first ids in place of its own."""
    spread = Sampler.spread
    monkeypatch.setattr(Sampler, "spread", lambda self, block, ids, size: spread(self, block, torch.arange(len(ids)), size))
    assert p_value(reduced, POLICIES["fixed"](gamma=1), DecodeConfig(max_new_tokens=2, temperature=1.0)) < 1e-6


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


class OneHot(Sampler):
    """Greedy decoding written out: rows of probabilities with a one in each."""

    def distribution(self, logits):
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), drafted=st.integers(0, 6), vocab=st.integers(2, 9), head=st.integers(1, 9))
def test_greedy_is_one_hot_sampling(seed, drafted, vocab, head):
    """The same draws and verdicts from places as from one-hot rows; few different logits, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(vocab, generator=generator)[: min(head, vocab)].sort().values
    draft_logits = [torch.randint(0, 3, (1, len(ids)), generator=generator).float() for _ in range(drafted)]
    target_logits = torch.randint(0, 3, (drafted + 1, vocab), generator=generator).float()
    verdicts = []
    for sampler in (GreedySampler(), OneHot(DecodeConfig(temperature=1.0), torch.device("cpu"), seed)):
        block = [sampler.distribution(logits) for logits in draft_logits]
        tokens = torch.cat([ids[:0], *(ids[sampler.draw(q)] for q in block)])
        verdict = sampler.judge(sampler.distribution(target_logits), sampler.spread(block, ids, vocab), tokens)
        verdicts.append((tokens.tolist(), verdict.tolist()))
    assert verdicts[0] == verdicts[1]


def test_the_config_chooses_the_sampler():
    kinds = [type(make_sampler(DecodeConfig(temperature=t), torch.device("cpu"))) for t in (0.0, 0.5)]
    assert kinds == [GreedySampler, Sampler]


class CountReads(TorchDispatchMode):
    """Counts single values taken to the host, each of which makes a GPU wait."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_verdict_reads_nothing_to_the_host(temperature):
    sampler = make_sampler(DecodeConfig(temperature=temperature, top_k=5, top_p=0.9), torch.device("cpu"))
    with CountReads() as counted:
        block = [sampler.distribution(torch.randn(1, 20)) for _ in range(3)]
        tokens = torch.cat([sampler.draw(q) for q in block])
        draft_probs = sampler.spread(block, None, 20)
        sampler.judge(sampler.distribution(torch.randn(4, 20)), draft_probs, tokens)
        assert counted.reads == 0
        tokens[tokens[0] * 0].item()
    assert counted.reads == 2, "an index without dimensions and a value asked for are both reads"


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 4), vocab=st.integers(2, 300), scale=st.sampled_from([0.0, 1.0, 30.0])
)
def test_thoughts_are_what_they_are_called(seed, rows, vocab, scale):
    """Bit for bit what the plain formulas give: stored tables must replay as they were recorded. Equal logits included."""
    logits = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale).round(decimals=1)
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    top = probs.topk(2, dim=-1).values
    entropy = -(probs * log_probs).nan_to_num().sum(dim=-1)
    assert torch.equal(measure_thought(logits), torch.stack([top[:, 0], entropy, top[:, 0] - top[:, 1]], dim=-1))
    assert torch.equal(find_best(logits), torch.stack([(row == row.max()).nonzero()[0, 0] for row in logits]))


def test_a_draft_with_one_token_is_sure_of_it():
    assert measure_thought(torch.tensor([[3.0]])).tolist() == [[1.0, 0.0, 1.0]]


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
