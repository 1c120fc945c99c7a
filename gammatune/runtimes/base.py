"""Forward passes over a KV cache: what the decoding loop knows of a model."""

import sys
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from gammatune.models.pair import Pair
from gammatune.runtimes.cuda import GraphedModel
from gammatune.runtimes.cuda_layers import why_not_graphed
from gammatune.runtimes.native import NativeModel, why_not_native


class CachedModel:
    """One model and the tokens its cache holds. Batch size 1.

    `length` tokens are in the cache, always a prefix of the committed text; whoever feeds it sends what comes next.
    ids [N]: the target ids that its head has rows for, where it has not one for each; vocab_size is then N.
    """

    def __init__(self, model: torch.nn.Module, vocab_size: int, ids: torch.Tensor | None = None):
        self.model = model
        self.ids = ids
        self.vocab_size = vocab_size if ids is None else len(ids)
        self.reset()

    def reset(self) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.length = 0

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32."""
        output = self.model(input_ids=tokens[None], past_key_values=self.cache, use_cache=True, logits_to_keep=keep)
        self.length += tokens.shape[0]
        return output.logits[0, -keep:, : self.vocab_size].float()

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens; no effect where the cache holds no more than that."""
        if self.length > length:
            # transformers 5 takes the number to remove, as a negative number
            self.cache.crop(length - self.length)
            self.length = length


@dataclass
class PairRuntime:
    """A pair with a cache on each side. host_reads counts device-to-host transfers, each of which waits for the device.

    name: "eager" or "compiled", what really runs.
    """

    pair: Pair
    target: CachedModel | NativeModel | GraphedModel
    draft: CachedModel | NativeModel | GraphedModel
    host_reads: int = 0
    name: str = "eager"

    @property
    def device(self) -> torch.device:
        return self.pair.device

    @property
    def reads_are_free(self) -> bool:
        """On a CPU nothing runs ahead of the host, so looking at a token costs nothing."""
        return self.device.type == "cpu"

    def reset(self) -> None:
        self.target.reset()
        self.draft.reset()

    @property
    def records_graphs(self) -> bool:
        return isinstance(self.target, GraphedModel)

    def warm(self, gamma_max: int, context: int) -> None:
        """Record what the device replays, for blocks up to gamma_max and texts up to `context` tokens; then no round pays
        for it. No effect where nothing is recorded."""
        if self.records_graphs:
            self.target.warm(range(1, gamma_max + 2), context=context)
            self.draft.warm((1, 2), keep=1, context=context)

    def upload(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.device)

    def read(self, tensor: torch.Tensor) -> list:
        """The one way from device to host."""
        self.host_reads += 1
        return tensor.tolist()


def eager_runtime(pair: Pair) -> PairRuntime:
    """Plain transformers forward passes with growing caches."""
    target, draft = CachedModel(pair.target, pair.vocab_size), CachedModel(pair.draft, pair.vocab_size, pair.draft_ids)
    return PairRuntime(pair, target, draft)


def build_runtime(pair: Pair, name: str) -> PairRuntime:
    """The runtime that a config names; eager, with one warning on stderr, where a model of the pair has no compiled form."""
    if name == "eager":
        return eager_runtime(pair)
    compiled, why_not = (GraphedModel, why_not_graphed) if pair.device.type == "cuda" else (NativeModel, why_not_native)
    reasons = {role: why_not(model) for role, model in (("target", pair.target), ("draft", pair.draft))}
    found = [f"{role}: {reason}" for role, reason in reasons.items() if reason]
    if found:
        print(f"gammatune: running eager, since this pair has no compiled form ({'; '.join(found)}).", file=sys.stderr)
        return eager_runtime(pair)
    target = compiled(pair.target, pair.vocab_size, pair.context)
    draft = compiled(pair.draft, pair.vocab_size, pair.context, pair.draft_ids)
    return PairRuntime(pair, target, draft, name="compiled")
