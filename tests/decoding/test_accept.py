"""Whatever is drafted, what is emitted has exactly the target's distribution: every case enumerated, none drawn."""

from dataclasses import dataclass
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_model import CPU, table_engine
from torch.utils._python_dispatch import TorchDispatchMode

from gammatune.config import DecodeConfig
from gammatune.decoding import accept
from gammatune.decoding.accept import ChainVerifier, accept_greedy, accept_sampled, residual
from gammatune.decoding.sampling import GreedySampler, Sampler, make_sampler
from gammatune.records import Proposal
from gammatune.runtimes.device import Device

PARTS = 12  # probabilities are whole multiples of 1 / PARTS
DRAFTED = 2


class Weights:
    """A sampler that shows what it would draw from."""

    generator = None

    def draw(self, weights: torch.Tensor) -> torch.Tensor:
        self.seen = (weights[0] / weights[0].sum()).double().numpy()
        return torch.tensor([0])


@dataclass
class Law:
    """Distributions p [V] and q [V] after each prefix, drawn from a seed. q None: a drafter that proposes one token."""

    seed: int
    vocab: int
    deterministic: bool

    def draw(self, kind: int, prefix: tuple) -> np.ndarray:
        rng = np.random.default_rng([self.seed, kind, len(prefix), *prefix])
        return rng.multinomial(PARTS, rng.dirichlet(np.full(self.vocab, 0.6))) / PARTS

    def p(self, prefix: tuple) -> np.ndarray:
        return self.draw(0, prefix)

    def q(self, prefix: tuple) -> np.ndarray:
        drawn = self.draw(1, prefix)
        return np.eye(self.vocab)[drawn.argmax()] if self.deterministic else drawn

    def of_target(self) -> np.ndarray:
        """Probability [V, V, V] of DRAFTED + 1 tokens from the target alone."""
        table = np.zeros([self.vocab] * (DRAFTED + 1))
        for tokens in product(range(self.vocab), repeat=DRAFTED + 1):
            table[tokens] = np.prod([self.p(tokens[:i])[token] for i, token in enumerate(tokens)])
        return table

    def of_rounds(self) -> np.ndarray:
        """The same of rounds: drafted, judged, and where tokens are missing after a rejection, the target's own."""
        table = np.zeros([self.vocab] * (DRAFTED + 1))
        for tokens in product(range(self.vocab), repeat=DRAFTED):
            q = [self.q(tokens[:i]) for i in range(DRAFTED)]
            # u on the middles of PARTS * q steps: the share of them under p / q is exactly min(1, p / q)
            steps = [round(PARTS * q[i][token]) for i, token in enumerate(tokens)]
            for places in product(*map(range, steps)):
                u = [(place + 0.5) / size for place, size in zip(places, steps, strict=True)]
                accepted, following = self.judge(tokens, q, u)
                chance = PARTS**-DRAFTED
                for token in np.flatnonzero(following):
                    self.fill(table, (*tokens[:accepted], token), chance * following[token])
        return table

    def judge(self, tokens: tuple, q: list, u: list) -> tuple[int, np.ndarray]:
        """What the code makes of drafted tokens and uniform numbers: how many are accepted, the law of the next token."""
        p = torch.tensor(np.array([self.p(tokens[:i]) for i in range(DRAFTED + 1)]), dtype=torch.float32)
        drawn_from = None if self.deterministic else torch.tensor(np.array(q), dtype=torch.float32)
        sampler = Weights()
        with patch.object(torch, "rand", lambda *shape, **options: torch.tensor(u, dtype=torch.float32)):
            accepted, _ = accept_sampled(p, Proposal(torch.tensor(tokens), drawn_from), sampler)
        return int(accepted), sampler.seen

    def fill(self, table: np.ndarray, emitted: tuple, chance: float) -> None:
        if len(emitted) == DRAFTED + 1:
            table[emitted] += chance
        else:
            for token in np.flatnonzero(self.p(emitted)):
                self.fill(table, (*emitted, token), chance * self.p(emitted)[token])


def worst(law: Law) -> float:
    """Largest difference between what rounds emit and what the target alone does."""
    return float(np.abs(law.of_rounds() - law.of_target()).max())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), vocab=st.integers(3, 6), deterministic=st.booleans())
def test_the_law_of_what_is_emitted_is_exactly_the_targets(seed, vocab, deterministic):
    """Tokens that only one side has, and drafters that are sure of themselves, included."""
    law = Law(seed, vocab, deterministic)
    assert law.of_target().sum() == pytest.approx(1)
    assert worst(law) < 1e-6


@pytest.mark.parametrize("deterministic", [False, True])
def test_leaving_out_the_residual_breaks_the_law(monkeypatch, deterministic):
    """Negative control: after a rejection draw from p instead of max(p - q, 0)."""
    monkeypatch.setattr(accept, "residual", lambda p, q: p)
    assert worst(Law(1, 4, deterministic)) > 0.01


def test_accepting_against_another_distribution_breaks_the_law(monkeypatch):
    """Negative control: tokens drawn from q, judged with a flattened q."""
    original = Law.judge
    monkeypatch.setattr(Law, "judge", lambda law, tokens, q, u: original(law, tokens, [np.full(4, 0.25)] * DRAFTED, u))
    assert worst(Law(1, 4, False)) > 0.01


def test_a_residual_is_what_p_has_more_than_q():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.6, 0.2]])
    torch.testing.assert_close(residual(p, q), torch.tensor([[0.3, 0.0, 0.0]]))
    assert torch.equal(residual(p, p), p), "where rounding leaves nothing"
    assert torch.equal(residual(p, torch.zeros_like(p)), p), "where nothing was drafted"


class OneHot(Sampler):
    """Greedy decoding written out: rows of probabilities with a one in each."""

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), drafted=st.integers(0, 6), vocab=st.integers(2, 9), head=st.integers(1, 9))
def test_greedy_is_one_hot_sampling(seed, drafted, vocab, head):
    """The same draws and verdicts from places as from one-hot rows; few different logits, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(vocab, generator=generator)[: min(head, vocab)].sort().values
    draft_logits = [torch.randint(0, 3, (1, len(ids)), generator=generator).float() for _ in range(drafted)]
    target_logits = torch.randint(0, 3, (drafted + 1, vocab), generator=generator).float()
    found = []
    for sampler in (GreedySampler(), OneHot(DecodeConfig(temperature=1.0), CPU, seed)):
        block = [sampler.distribution(logits) for logits in draft_logits]
        tokens = torch.cat([ids[:0], *(ids[sampler.draw(q)] for q in block)])
        p = sampler.distribution(target_logits)
        if sampler.greedy:
            verdict = accept_greedy(p, tokens)
        else:
            verdict = accept_sampled(p, Proposal(tokens, sampler.spread(block, ids, vocab)), sampler)
        found.append((tokens.tolist(), *(each.tolist() for each in verdict)))
    assert found[0] == found[1]


class CountReads(TorchDispatchMode):
    """Counts single values taken to the host, each of which makes a GPU wait."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("temperature", "drafter"), [(0.0, "model"), (0.8, "model"), (0.8, "lookup")])
def test_a_verdict_takes_one_read(temperature, drafter):
    """Only the one at its end, of everything that the host must know."""
    sampler, device = make_sampler(DecodeConfig(temperature=temperature, top_k=5, top_p=0.9), CPU), Device(CPU)
    verifier = ChainVerifier(table_engine(vocab_size=20).target, device)
    verifier.begin([4, 5, 6])
    with CountReads() as counted:
        block = [sampler.distribution(torch.randn(1, 20)) for _ in range(3)]
        tokens = torch.cat([sampler.draw(q) for q in block])
        q = sampler.spread(block, None, 20) if drafter == "model" else None
        with patch.object(device, "read", lambda tensor: [*range(3), 1, 7]):
            verdict = verifier.verify([4, 5, 6], Proposal(tokens, q), sampler)
        assert counted.reads == 0
        tokens[tokens[0] * 0].item()
    assert counted.reads == 2, "an index without dimensions and a value asked for are both reads"
    assert (verdict.tokens, verdict.path, verdict.next_token) == ([0, 1, 2], [0], 7)
