"""From logits to tokens; and the sampled answers of the whole loop have the target's own distribution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scripted import Scripted, ScriptedWatching
from table_model import CPU, table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding import accept
from gammatune.decoding.loop import generate_speculative
from gammatune.decoding.sampling import GreedySampler, Sampler, find_best, make_sampler
from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.signals import measure_signals
from gammatune.drafters.suffix import Suffix
from gammatune.policies.session import PolicySession

VOCAB = 6
DRAWS = 500
PROMPT = [1, 2, 1]  # the lookup proposes 2
WARM = DecodeConfig(max_new_tokens=2, temperature=2.0)

# The table's logits, made flatter so that all tokens are drawn; a draft that is never the target
ENGINES = {
    "draft": lambda: table_engine(agreement=0.0, vocab_size=VOCAB, ends=()),
    "draft with 3 of 6 tokens": lambda: table_engine(agreement=0.0, vocab_size=VOCAB, ends=(), head=3),
    "lookup": lambda: table_engine(Lookup(), vocab_size=VOCAB, ends=()),
    "suffix": lambda: table_engine(Suffix(), vocab_size=VOCAB, ends=()),
    # where the first token is 0 or 3 to 5, nothing is found and the model drafts the second
    "suffix, then draft": lambda: table_engine(FirstOf([Suffix(), DraftModel()]), agreement=0.0, vocab_size=VOCAB, ends=()),
}


def exact_pairs(engine, decode: DecodeConfig) -> np.ndarray:
    """Probability [V * V] of the first two tokens under the target alone."""
    sampler = Sampler(decode, CPU)

    def after(prefix: list[int]) -> np.ndarray:
        return sampler.distribution(engine.target.look_up(prefix)[None])[0].double().numpy()

    first = after(PROMPT)
    return np.stack([first[token] * after([*PROMPT, token]) for token in range(VOCAB)]).flatten()


def p_value(engine, policy, decode: DecodeConfig = WARM) -> float:
    """Chi-square of the first two sampled tokens against the exact table; rare cells pooled."""
    expected, observed, session = exact_pairs(engine, decode) * DRAWS, np.zeros(VOCAB * VOCAB), PolicySession(policy)
    for seed in range(DRAWS):
        first, second = generate_speculative(engine, PROMPT, session, decode, seed).output_ids
        observed[first * VOCAB + second] += 1
    assert observed[expected == 0].sum() == 0
    common = expected >= 5
    assert common.sum() > 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("kind", ENGINES)
def test_sampled_answers_have_the_targets_distribution(kind):
    assert p_value(ENGINES[kind](), Scripted(plans=[1])) > 1e-4


def test_so_they_have_where_distributions_are_cut_and_a_policy_stops_blocks():
    decode = DecodeConfig(max_new_tokens=2, temperature=1.5, top_p=0.95, top_k=5)
    assert p_value(ENGINES["draft"](), ScriptedWatching(plans=[1], keeps=[True, False], stop_token="exclude"), decode) > 1e-4


@pytest.mark.parametrize("kind", ["draft", "lookup", "suffix", "suffix, then draft"])
def test_leaving_out_the_residual_is_noticed(kind, monkeypatch):
    """Negative control: after a rejection draw from p instead of max(p - q, 0)."""
    monkeypatch.setattr(accept, "residual", lambda p, q: p)
    assert p_value(ENGINES[kind](), Scripted(plans=[1])) < 1e-6


def test_what_the_first_drafter_proposed_judged_as_if_it_were_drawn_is_noticed(monkeypatch):
    """Negative control: a token that is certain, judged by a distribution. The reverse would be exact: any may be judged as
    if it had been certain.
    """
    propose = Suffix.propose

    def with_q(self, text, block):
        proposal = propose(self, text, block)
        return replace(proposal, q=torch.full((len(proposal.tokens), VOCAB), 1 / VOCAB))

    monkeypatch.setattr(Suffix, "propose", with_q)
    assert p_value(ENGINES["suffix, then draft"](), Scripted(plans=[1])) < 1e-6


def test_accepting_against_another_distribution_is_noticed(monkeypatch):
    """Negative control: tokens drawn from q, judged with a flattened q."""
    monkeypatch.setattr(Sampler, "spread", lambda self, block, ids, size: torch.full((len(block), size), 1 / size))
    assert p_value(ENGINES["draft"](), Scripted(plans=[1])) < 1e-6


def test_a_draft_distribution_that_is_spread_wrong_is_noticed(monkeypatch):
    """Negative control: the draft's probabilities under the first ids in place of its own."""
    spread = Sampler.spread
    monkeypatch.setattr(Sampler, "spread", lambda self, block, ids, size: spread(self, block, torch.arange(len(ids)), size))
    assert p_value(ENGINES["draft with 3 of 6 tokens"](), Scripted(plans=[1])) < 1e-6


def test_a_draw_is_in_proportion_to_the_weights(monkeypatch):
    """Over a grid of noise in place of a draw: exponential clocks at the middles of 50 x 50 x 50 equally likely cells."""
    quantiles = -np.log1p(-(np.arange(50) + 0.5) / 50)
    noise = torch.tensor(np.stack(np.meshgrid(quantiles, quantiles, quantiles), axis=-1).reshape(-1, 3), dtype=torch.float32)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda tensor, generator=None: tensor.copy_(noise))
    for weights in ([0.5, 0.3, 0.2], [6.0, 1.0, 0.0], [1.0, 1.0, 1.0]):
        drawn = Sampler(WARM, CPU).draw(torch.tensor(weights).expand(len(noise), 3))
        share = np.bincount(drawn.numpy(), minlength=3) / len(noise)
        assert share == pytest.approx(np.array(weights) / sum(weights), abs=0.02)
        assert share[np.array(weights) == 0].sum() == 0


def test_a_block_is_spread_over_the_targets_vocabulary():
    sampler, block = Sampler(WARM, CPU), [torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])]
    assert sampler.spread(block, torch.tensor([1, 3]), 4).tolist() == [[0.0, 0.75, 0.0, 0.25], [0.0, 0.5, 0.0, 0.5]]
    assert torch.equal(sampler.spread(block, None, 2), torch.cat(block))
    assert sampler.spread([], None, 4).shape == (0, 4) and sampler.spread([], torch.tensor([1, 3]), 4).shape == (0, 4)


def test_the_config_chooses_the_sampler():
    kinds = [type(make_sampler(DecodeConfig(temperature=t), CPU)) for t in (0.0, 0.5)]
    assert kinds == [GreedySampler, Sampler]


def test_the_same_seed_gives_the_same_answer():
    decode, engine = DecodeConfig(max_new_tokens=30, temperature=1.0), table_engine()
    runs = [generate_speculative(engine, [5, 6], PolicySession(Scripted()), decode, seed) for seed in (1, 1, 2)]
    assert runs[0].output_ids == runs[1].output_ids != runs[2].output_ids


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 4), vocab=st.integers(2, 300), scale=st.sampled_from([0.0, 1.0, 30.0])
)
def test_signals_are_what_they_are_called(seed, rows, vocab, scale):
    """Bit for bit what the plain formulas give: stored tables must replay as they were recorded. Equal logits included."""
    logits = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale).round(decimals=1)
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    top = probs.topk(2, dim=-1).values
    entropy = -(probs * log_probs).nan_to_num().sum(dim=-1)
    assert torch.equal(measure_signals(logits), torch.stack([top[:, 0], entropy, top[:, 0] - top[:, 1]], dim=-1))
    assert torch.equal(find_best(logits), torch.stack([(row == row.max()).nonzero()[0, 0] for row in logits]))


def test_a_draft_with_one_token_is_sure_of_it():
    assert measure_signals(torch.tensor([[3.0]])).tolist() == [[1.0, 0.0, 1.0]]


def test_warping_matches_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)) * 3
    warped = logits
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(40), TopPLogitsWarper(0.85)):
        warped = warper(None, warped)
    ours = Sampler(DecodeConfig(temperature=0.8, top_k=40, top_p=0.85), CPU).distribution(logits)
    torch.testing.assert_close(ours, warped.softmax(-1))
