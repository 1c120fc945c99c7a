"""From logits to distributions, from distributions to tokens.

Greedy decoding is sampling from one-hot distributions: one path serves both. Only how a distribution is written down
differs: a row of probabilities, or where it is one-hot the place of its one.
"""

from collections.abc import Callable, Sequence

import torch

from gammatune.config import DecodeConfig
from gammatune.drafters.signals import find_best


class Sampler:
    """Turns logits into distributions and distributions into tokens. Seeded."""

    greedy = False

    def __init__(self, config: DecodeConfig, device: torch.device, seed: int = 0):
        self.config = config
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def distribution(self, logits: torch.Tensor, text: Sequence[int] = (), drafted: Sequence[torch.Tensor] = ()):
        """Logits [n, V] to the probabilities [n, V] that tokens are drawn from.

        text: committed tokens. drafted: the ids drafted after them, in pieces [k] each. The last row follows all of these,
        the row before it all but the last, and so on. Only a sampler whose rules depend on earlier tokens reads them.
        """
        logits = logits / self.config.temperature
        if 0 < self.config.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.config.top_k)
        if self.config.top_p < 1.0:
            logits = keep_top_p(logits, self.config.top_p)
        return logits.softmax(dim=-1)

    def peaks(self, logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """[n], finite exactly where a row can be drawn from: one NaN or +inf, or no token, makes softmax's whole row NaN."""
        return probs[:, 0]

    def draw(self, weights: torch.Tensor) -> torch.Tensor:
        """One place [n] per row of non-negative weights [n, V], in proportion to them.

        A race of exponential clocks: argmax of weight / noise needs no normalisation and no host read.
        """
        noise = torch.empty_like(weights).exponential_(generator=self.generator)
        return find_best(weights / noise)

    def spread(self, block: list[torch.Tensor], ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
        """The draft's distributions of a block, k times [1, N], over the target's vocabulary [k, V].

        ids [N]: the target ids that the draft has rows for (None: all). What it has no row for has probability 0.
        """
        probs = torch.cat(block) if block else torch.zeros(0, vocab_size if ids is None else len(ids), device=self.device)
        if ids is None:
            return probs
        return torch.zeros(len(block), vocab_size, device=self.device).index_copy_(1, ids, probs)


class GreedySampler:
    """Sampling from one-hot distributions, each written as the place [n] of its one in place of a row [n, V]."""

    greedy = True

    def distribution(self, logits: torch.Tensor, text: Sequence[int] = (), drafted: Sequence[torch.Tensor] = ()):
        """Logits [n, V] to the place [n] of the largest in each row."""
        return find_best(logits)

    def peaks(self, logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """[n], finite exactly where a row has a best token: argmax takes a NaN before +inf, and any number before -inf."""
        return logits.gather(1, best[:, None]).squeeze(1)

    def draw(self, best: torch.Tensor) -> torch.Tensor:
        return best

    def spread(self, block: list[torch.Tensor], ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor | None:
        """Nothing: a drafted token is all of the distribution that it was drawn from."""


class ProcessedSampler:
    """Sampling or greedy, after logits processors of transformers, which see the tokens that a row follows.

    Draws from torch's global generator, as transformers does. ids [1, n]: the committed tokens, with as many before them as
    are `hidden` from the models (padding). logits, scores [k, V]: the rows last seen, before and after.
    """

    generator = None

    def __init__(self, processors: Callable, sample: bool, input_ids: torch.Tensor, hidden: int):
        self.plain = Sampler(DecodeConfig(temperature=1.0), input_ids.device) if sample else GreedySampler()
        self.plain.generator = None
        self.greedy, self.draw, self.spread = self.plain.greedy, self.plain.draw, self.plain.spread
        self.processors, self.ids, self.hidden = processors, input_ids, hidden

    def distribution(self, logits: torch.Tensor, text: Sequence[int], drafted: Sequence[torch.Tensor]) -> torch.Tensor:
        """As of the other samplers."""
        self.logits = self.scores = logits
        if self.processors:
            ids = torch.cat([self.read(text), *(piece[None].to(self.ids) for piece in drafted)], dim=1)
            first = ids.shape[1] - len(logits) + 1  # tokens that the first row follows
            # rows of one call must follow equally many tokens, so one at a time; a copy, since processors write in place
            copies = logits.to(ids.device, copy=True).split(1)
            processed = [self.processors(ids[:, : first + place], row) for place, row in enumerate(copies)]
            self.scores = torch.cat(processed).to(logits.device)
        return self.plain.distribution(self.scores)

    def peaks(self, logits: torch.Tensor, distribution: torch.Tensor) -> torch.Tensor:
        """Of the scores: a processor may take what the models left out of range away."""
        return self.plain.peaks(self.scores, distribution)

    def read(self, text: Sequence[int]) -> torch.Tensor:
        """ids, with what was committed since the last call."""
        new = text[self.ids.shape[1] - self.hidden :]
        self.ids = torch.cat([self.ids, self.ids.new_tensor([new])], dim=1) if new else self.ids
        return self.ids


def make_sampler(config: DecodeConfig, device: torch.device, seed: int = 0) -> Sampler | GreedySampler:
    """The sampler of a decode config; seed plays no part in greedy decoding."""
    return GreedySampler() if config.greedy else Sampler(config, device, seed)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose probability reaches p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    dropped = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))
