"""A model as transformers runs it, over a cache that grows."""

import torch
import transformers
from packaging.version import Version
from transformers import Cache, DynamicCache

from gammatune.models.feature_draft import FeatureTap

#: what forward, generate and its output call the cache; renamed in transformers 5.24
CACHE = "cache" if Version(transformers.__version__).release >= (5, 24) else "past_key_values"


class EagerModel:
    """`Model` (gammatune.runtimes.base) by plain transformers forwards.

    vocab_size: columns of the logits that are kept; a checkpoint may pad its LM head to a round number. cache: an empty one,
    for a model that reads one text only; None makes a new one for each text.
    """

    takes_masks = True
    records_graphs = False

    def __init__(self, model: torch.nn.Module, vocab_size: int, cache: Cache | None = None):
        self.model, self.dtype = model, model.dtype
        self.vocab_size = vocab_size
        self.only_cache = cache
        self.tap: FeatureTap | None = None
        self.reset()

    def reset(self) -> None:
        self.cache = DynamicCache(config=self.model.config) if self.only_cache is None else self.only_cache
        # layers with a window forget what a crop must give back, unless told to keep it
        self.cache.activate_past_recording()
        self.length = 0

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int, positions=None, mask=None) -> torch.Tensor:
        inputs = {"input_ids": tokens[None], CACHE: self.cache, "use_cache": True, "logits_to_keep": keep}
        if positions is not None:
            hidden = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
            hidden.masked_fill_(~mask, torch.finfo(self.model.dtype).min)
            inputs |= {"position_ids": positions[None], "attention_mask": hidden[None, None]}
        output = self.model(**inputs)
        self.length += tokens.shape[0]
        return output.logits[0, -keep:, : self.vocab_size].float()

    def keep_features(self) -> None:
        self.tap = self.tap or FeatureTap(self.model)

    @property
    def features(self) -> torch.Tensor | None:
        return None if self.tap is None or self.tap.features is None else self.tap.features[0]

    def crop(self, length: int) -> None:
        if self.length > length:
            # transformers 5 takes the number to remove, as a negative number
            self.cache.crop(length - self.length)
            self.length = length

    def warm(self, counts, context: int, keep: int | None = None) -> None:
        """Nothing to prepare."""
