"""Verification: one target forward over a proposal, and which of its tokens are accepted.

Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1. p: the target's distributions, q: the drafter's.
"""

from typing import Protocol

import torch

from gammatune.decoding.sampling import GreedySampler, Sampler
from gammatune.records import Proposal, Verdict
from gammatune.runtimes.base import Model
from gammatune.runtimes.device import Device


class Verifier(Protocol):
    """The target's side of a round. The last committed token is never in its cache, as in a drafter's."""

    def begin(self, prompt: list[int]) -> None:
        """A new text: read all of the prompt but its last token."""

    def verify(self, text: list[int], proposal: Proposal, sampler: Sampler | GreedySampler) -> Verdict:
        """Judge a proposal that follows the text."""

    def commit(self, text: list[int], verdict: Verdict) -> None:
        """The text that the round left: forget what is not part of it."""


class ChainVerifier:
    """Verifies one chain of tokens."""

    def __init__(self, target: Model, device: Device):
        self.target = target
        self.device = device

    def begin(self, prompt: list[int]) -> None:
        self.target.reset()
        if len(prompt) > 1:
            self.target.forward(self.device.upload(prompt[:-1]), keep=1)

    def verify(self, text: list[int], proposal: Proposal, sampler: Sampler | GreedySampler) -> Verdict:
        drafted, k = proposal.tokens, len(proposal.tokens)  # [k]
        feed = torch.cat([self.device.upload(text[self.target.length :]), drafted])
        logits = self.target.forward(feed, keep=k + 1)  # [k + 1, V]
        p = sampler.distribution(logits, text, [drafted])
        accepted, following = accept_greedy(p, drafted) if sampler.greedy else accept_sampled(p, proposal, sampler)
        peaks = sampler.peaks(logits, p)  # [k + 1]
        if proposal.peaks is not None:
            peaks = torch.cat([proposal.peaks, peaks])
        late = drafted[:0] if proposal.caught_up is None else proposal.caught_up.long()  # [c]
        # everything that the host must know crosses in one read; what was drawn from NaN is an id like any other
        read = self.device.read(torch.cat([drafted, accepted, following, late, peaks.isfinite().long()]))
        tokens, accepted, following, rest = read[:k], read[k], read[k + 1], read[k + 2 :]
        caught_up, finite = tuple(map(bool, rest[: len(late)])), rest[len(late) :]
        return Verdict(tokens, list(range(accepted)), following, None if all(finite) else finite.index(0), caught_up)

    def commit(self, text: list[int], verdict: Verdict) -> None:
        self.target.crop(len(text) - 1)


def accept_greedy(best: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """accepted [1] and next token [1]: a token is accepted where it is the target's own best [k + 1], which also follows."""
    accepted = count_prefix(best[:-1] == tokens)
    return accepted, best[accepted]


def accept_sampled(p: torch.Tensor, proposal: Proposal, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
    """accepted [1], 0..k, and next token [1]. p [k + 1, V]; proposal.q [k, V]: the very tensor that tokens were drawn from.

    Token i is accepted with probability min(1, p_i / q_i); after the first rejection the next token comes from
    norm(max(p - q, 0)), after none from p at the extra position. A deterministic drafter's q is 1 at its token.
    """
    tokens, index = proposal.tokens, proposal.tokens[:, None]
    q = torch.zeros_like(p[:-1]).scatter_(1, index, 1.0) if proposal.q is None else proposal.q  # [k, V]
    p_drafted, q_drafted = p[:-1].gather(1, index).squeeze(1), q.gather(1, index).squeeze(1)  # [k]
    u = torch.rand(tokens.shape, generator=sampler.generator, device=tokens.device)
    accepted = count_prefix(u * q_drafted < p_drafted)
    nothing = torch.zeros_like(p[:1])  # q at the extra position
    return accepted, sampler.draw(residual(p[accepted], torch.cat([q, nothing])[accepted]))


def count_prefix(accepted: torch.Tensor) -> torch.Tensor:
    """How many of [k] hold before the first that does not: [1], so that indexing with it does not wait for the device."""
    return accepted.long().cumprod(dim=0).sum(dim=0, keepdim=True)


def residual(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """max(p - q, 0), not normalised [1, V]; p itself where rounding leaves nothing of the difference."""
    difference = (p - q).clamp(min=0)
    return torch.where(difference.sum() > 0, difference, p)
