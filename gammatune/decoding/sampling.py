"""Distributions, draws and the acceptance test (Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1).

Greedy decoding is sampling from one-hot distributions: one path serves both.
"""

import torch

from gammatune.decoding.settings import DecodeConfig


class Sampler:
    """Turns logits into distributions, distributions into tokens, and judges drafted tokens. Seeded."""

    def __init__(self, config: DecodeConfig, device: torch.device, seed: int = 0):
        self.config = config
        self.generator = torch.Generator(device).manual_seed(seed)

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] to the probabilities [n, V] that tokens are drawn from; one-hot when greedy."""
        if self.config.greedy:
            best = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, best, 1.0)
        logits = logits / self.config.temperature
        if 0 < self.config.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.config.top_k)
        if self.config.top_p < 1.0:
            logits = keep_top_p(logits, self.config.top_p)
        return logits.softmax(dim=-1)

    def draw(self, weights: torch.Tensor) -> torch.Tensor:
        """One token [n] per row of non-negative weights [n, V], in proportion to them.

        A race of exponential clocks: argmax of weight / noise needs no normalisation and no host read.
        """
        if self.config.greedy:
            return weights.argmax(dim=-1)
        noise = torch.empty_like(weights).exponential_(generator=self.generator)
        return (weights / noise).argmax(dim=-1)

    def judge(self, target_probs: torch.Tensor, draft_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Accept a prefix of tokens [k] and draw the token after it.

        target_probs [k + 1, V], draft_probs [k, V]: the very tensors that the tokens were drawn from. Returns [2]: accepted
        (0..k), next token. Token i stands with probability min(1, p_i / q_i); after the first that falls, the next token
        comes from norm(max(p - q, 0)), after none from p at the extra position.
        """
        index = tokens[:, None]
        p = target_probs[:-1].gather(1, index).squeeze(1)  # [k]
        q = draft_probs.gather(1, index).squeeze(1)  # [k]
        u = torch.rand(tokens.shape, generator=self.generator, device=tokens.device)
        accepted = (u * q < p).long().cumprod(dim=0).sum()
        no_draft = torch.zeros_like(target_probs[:1])
        leftover = residual(target_probs[accepted], torch.cat([draft_probs, no_draft])[accepted])
        return torch.stack([accepted, self.draw(leftover[None])[0]])


def residual(target_probs: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
    """max(p - q, 0), not normalised [V]; p itself where rounding leaves nothing of the difference."""
    difference = (target_probs - draft_probs).clamp(min=0)
    return torch.where(difference.sum() > 0, difference, target_probs)


def measure_thought(logits: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] to [n, 3]: largest probability, entropy in nats, largest minus second largest probability."""
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    top = probs.topk(2, dim=-1).values
    entropy = -(probs * log_probs).nan_to_num().sum(dim=-1)
    return torch.stack([top[:, 0], entropy, top[:, 0] - top[:, 1]], dim=-1)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose probability reaches p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    dropped = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))
