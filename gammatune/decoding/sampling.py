"""Distributions, draws and the acceptance test (Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1).

Greedy decoding is sampling from one-hot distributions: one path serves both. Only how a distribution is written down
differs: a row of probabilities, or where it is one-hot the place of its one.
"""

import torch

from gammatune.config import DecodeConfig


class Sampler:
    """Turns logits into distributions, distributions into tokens, and judges drafted tokens. Seeded."""

    greedy = False

    def __init__(self, config: DecodeConfig, device: torch.device, seed: int = 0):
        self.config = config
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] to the probabilities [n, V] that tokens are drawn from."""
        logits = logits / self.config.temperature
        if 0 < self.config.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.config.top_k)
        if self.config.top_p < 1.0:
            logits = keep_top_p(logits, self.config.top_p)
        return logits.softmax(dim=-1)

    def draw(self, weights: torch.Tensor) -> torch.Tensor:
        """One place [n] per row of non-negative weights [n, V], in proportion to them.

        A race of exponential clocks: argmax of weight / noise needs no normalisation and no host read.
        """
        noise = torch.empty_like(weights).exponential_(generator=self.generator)
        return find_best(weights / noise)

    def spread(self, block: list[torch.Tensor], ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
        """The draft's distributions of a block, k times [1, N], over the target's vocabulary [k, V].

        ids [N]: the target ids that the draft has rows for (None: all). What the draft cannot say has probability 0.
        """
        probs = torch.cat(block) if block else torch.zeros(0, vocab_size if ids is None else len(ids), device=self.device)
        if ids is None:
            return probs
        return torch.zeros(len(block), vocab_size, device=self.device).index_copy_(1, ids, probs)

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
        accepted = count_prefix(u * q < p)
        no_draft = torch.zeros_like(target_probs[:1])
        leftover = residual(target_probs[accepted], torch.cat([draft_probs, no_draft])[accepted])
        return torch.cat([accepted, self.draw(leftover)])


class GreedySampler:
    """Sampling from one-hot distributions, each written as the place [n] of its one in place of a row [n, V]."""

    greedy = True

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] to the place [n] of the largest in each row."""
        return find_best(logits)

    def draw(self, best: torch.Tensor) -> torch.Tensor:
        return best

    def spread(self, block: list[torch.Tensor], ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor | None:
        """Nothing: a drafted token is all of the distribution that it was drawn from."""

    def judge(self, target_best: torch.Tensor, draft_best: None, tokens: torch.Tensor) -> torch.Tensor:
        """Sampler.judge for one-hot rows: a token stands where it is the target's own [k + 1], which also comes next."""
        accepted = count_prefix(target_best[:-1] == tokens)
        return torch.cat([accepted, target_best[accepted]])


def make_sampler(config: DecodeConfig, device: torch.device, seed: int = 0) -> Sampler | GreedySampler:
    """The sampler of a decode config; seed plays no part in greedy decoding."""
    return GreedySampler() if config.greedy else Sampler(config, device, seed)


def find_best(values: torch.Tensor) -> torch.Tensor:
    """Place [n] of the largest value in each row of [n, V], the first of equals."""
    if values.device.type == "cpu":  # numpy searches a row of 49,152 in 4 us, torch 2.13 in 70
        return torch.from_numpy(values.numpy().argmax(axis=-1))
    return values.argmax(dim=-1)


def name_tokens(rows: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Rows [n] of an output head to target ids [n]; ids [N]: what the head's rows stand for, None where for themselves."""
    return rows if ids is None else ids[rows]


def count_prefix(stands: torch.Tensor) -> torch.Tensor:
    """How many of [k] hold before the first that does not: [1], so that indexing with it does not wait for the device."""
    return stands.long().cumprod(dim=0).sum(dim=0, keepdim=True)


def residual(target_probs: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
    """max(p - q, 0), not normalised [1, V]; p itself where rounding leaves nothing of the difference."""
    difference = (target_probs - draft_probs).clamp(min=0)
    return torch.where(difference.sum() > 0, difference, target_probs)


def measure_thought(logits: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] to [n, 3]: largest probability, entropy in nats, largest minus second largest probability."""
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    entropy = -log_probs.mul_(probs).nan_to_num_().sum(dim=-1)
    best = find_best(probs)[:, None]
    top1 = probs.gather(1, best).squeeze(1)
    top2 = probs.scatter_(1, best, 0.0).amax(dim=-1)  # two passes over a row cost a third of topk
    return torch.stack([top1, entropy, top1 - top2], dim=-1)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose probability reaches p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    dropped = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))
