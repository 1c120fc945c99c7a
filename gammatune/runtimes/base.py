"""What the decoding loop needs of a model, and the models of a pair in the runtime that a config names."""

import sys
from dataclasses import dataclass
from typing import Protocol

import torch

from gammatune.models.pair import Pair
from gammatune.runtimes import cuda, native
from gammatune.runtimes.cuda import GraphedModel
from gammatune.runtimes.eager import EagerModel
from gammatune.runtimes.native import NativeModel


class Model(Protocol):
    """Forward passes over a KV cache. Batch size 1.

    The cache always holds a prefix of the text; whoever feeds the model sends what comes next.
    """

    length: int  # tokens in the cache
    vocab_size: int  # columns of the logits
    dtype: torch.dtype  # of the weights
    takes_masks: bool  # whether `forward` takes positions and a mask
    records_graphs: bool  # whether `warm` has something to record
    features: torch.Tensor | None  # [n, hidden], of the tokens fed last, before the final norm; None where not kept

    def reset(self) -> None:
        """Empty the cache."""

    def forward(self, tokens: torch.Tensor, keep: int, positions=None, mask=None) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32.

        positions [n] and mask [n, cached + n] (True where a token is seen) stand in for "each token after the one before".
        """

    def keep_features(self) -> None:
        """From now on leave `features` after each forward; logits stay as they are, bit for bit.

        Raises UserError where this runtime cannot.
        """

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens; no effect where the cache holds no more than that."""

    def warm(self, counts, context: int, keep: int | None = None) -> None:
        """Prepare forwards over these counts of tokens, up to `context` cached ones; then no round pays for it."""


@dataclass
class Models:
    """The models of a pair, ready to decode."""

    target: Model
    draft: Model | None  # None where the pair was loaded without its draft
    runtime: str  # what really runs: "eager" or "compiled"


def build_models(pair: Pair, runtime: str, release: bool = False) -> Models:
    """The runtime that a config names; eager, with one warning on stderr, where a model of the pair has no compiled form.

    release: the pair serves nothing else from then on, so a compiled form need not leave it its weights.
    """
    if runtime == "compiled" and (found := refusals(pair)):
        print(f"gammatune: running eager, since this pair has no compiled form ({'; '.join(found)}).", file=sys.stderr)
        runtime = "eager"
    return Models(*(build_model(pair, role, runtime, release) for role in ("target", "draft")), runtime)


def build_model(pair: Pair, role: str, runtime: str, release: bool = False) -> Model | None:
    """One model of a pair of which nothing is refused; None for a draft that the pair does not have."""
    model = getattr(pair, role)
    if model is None:
        return None
    rows = pair.vocab_size if role == "target" or pair.draft_ids is None else len(pair.draft_ids)
    return wrap_model(model, rows, pair.context, runtime, release)


def wrap_model(model: torch.nn.Module, rows: int, context: int, runtime: str, release: bool = False) -> Model:
    """A model in a runtime that does not refuse it. rows: of its LM head. context: positions that may be needed."""
    if runtime == "eager":
        return EagerModel(model, rows)
    if model.device.type == "cuda":
        return GraphedModel(model, rows, context)
    return NativeModel(model, rows, context, release)


def refusals(pair: Pair) -> list[str]:
    """Why this pair has no compiled form here, a reason for each of its models that has none."""
    runtime = cuda if pair.device.type == "cuda" else native
    models = {"target": pair.target, "draft": pair.draft}
    return [f"{role}: {why}" for role, model in models.items() if model is not None and (why := runtime.refusal(model))]
