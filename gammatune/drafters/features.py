"""A feature draft: one decoder layer over the target's last hidden states (gammatune.models.feature_draft).

Its cache holds one entry for each position i that has a successor, made of the target's feature there and token i + 1. The
target's features come with its own forwards, at no forward more. Within a block the draft goes on from the features that it
predicts; those entries are dropped when the round ends, and what was accepted is read again, with the target's features, by
the next block's first step. So a proposal depends on where its block began.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from gammatune.drafters.base import Workplace
from gammatune.drafters.chain import ChainDrafter
from gammatune.errors import UserError
from gammatune.files import hash_file
from gammatune.models.feature_draft import FILE, HOW, FeatureDraft
from gammatune.models.pair import Pair
from gammatune.records import Block
from gammatune.runtimes.base import wrap_model
from gammatune.traces import StartTrace

MOST = 256  # positions of one forward, as many as the compiled step takes
CHUNK = 128  # answer positions that the target reads per forward in a trace


@dataclass
class Features(ChainDrafter):
    """One layer of the target's own kind (EAGLE-1, Li et al. 2024, arXiv 2401.15077)."""

    name: ClassVar[str] = "features"
    title: ClassVar[str] = "feature draft"
    reads_features: ClassVar[bool] = True
    rereads: ClassVar[bool] = True

    path: str = ""  # folder of the feature draft

    def __post_init__(self):
        if not self.path:
            raise UserError(
                "drafter.path is not set: give the folder of a feature draft, drafter=features drafter.path=FOLDER."
            )
        if not os.path.isfile(self.file):  # noqa: PTH113 - Path's own raises for a name that is too long
            raise UserError(f"drafter.path={self.path} holds no {FILE}: {HOW}.")

    @property
    def file(self) -> Path:
        return Path(os.path.expanduser(self.path)) / FILE  # noqa: PTH111 - Path's own raises for an unknown user

    @property
    def identity(self) -> dict:
        """The weights, wherever they lie."""
        return {"name": self.name, "weights_sha256": hash_file(self.file)}

    def load(self, pair: Pair) -> None:
        """Raises UserError where the draft belongs to another target or its file is damaged."""
        self.draft = FeatureDraft.load(self.file.parent, pair.target, pair.tokenizer)
        self.rows = pair.vocab_size if self.draft.ids is None else len(self.draft.ids)
        self.context = pair.context

    def attach(self, workplace: Workplace) -> None:
        """The layer in the target's runtime: its embedding is `inputs`, so that it needs no kernel of its own."""
        like = self.draft.fuse.weight
        inputs = nn.Embedding(MOST, like.shape[0], dtype=like.dtype, device=like.device)
        model = wrap_model(self.draft.as_causal_lm(inputs), self.rows, self.context, workplace.runtime)
        model.keep_features()
        if like.device.type == "cpu":
            self.draft.widen()
        self.inputs, self.places = inputs.weight.data, torch.arange(MOST, device=like.device)  # [MOST, hidden], [MOST]
        # of the compiled step, a token's bits are the same however many are fed; so they must be of what goes into it
        self.single = workplace.runtime == "compiled"
        ids = None if self.draft.ids is None else self.draft.ids.to(like.device)
        super().attach(replace(workplace, model=model, ids=ids))

    @torch.inference_mode()
    def begin(self, prompt: list[int], sampler) -> None:
        """The target has read all of the prompt but its last token."""
        super().begin(prompt, sampler)
        self.traced: torch.Tensor | None = None  # [n, hidden], from the prompt's last token on; the answer's, while tracing
        self.known = 0  # entries of the cache that are the target's features
        self.waiting = self.inputs[:0]  # [w, hidden], the target's features of the positions that follow these
        if len(prompt) > 1:
            features = self.workplace.target.features  # [prompt - 1, hidden]
            last = len(prompt) - 2
            if last:
                self.feed(features[:last], prompt[1:-1], single=False)
            self.known, self.waiting = last, features[last:]

    def unread(self, text: list[int]) -> int:
        return len(self.waiting)

    @torch.inference_mode()
    def read(self, text: list[int], block: Block) -> tuple[torch.Tensor, None]:
        """Everything committed that is not in the cache yet."""
        logits = self.feed(self.waiting, text[self.known + 1 :], self.single)
        self.known, self.waiting = self.known + len(self.waiting), self.waiting[:0]
        return logits, None

    @torch.inference_mode()
    def step(self, token: torch.Tensor) -> torch.Tensor:
        """From the feature that the last forward predicted."""
        return self.run(self.draft.fuse_inputs(self.model.features[-1:], token))

    def feed(self, features: torch.Tensor, following: list[int], single: bool) -> torch.Tensor:
        """The last entry's logits [1, N], of entries of features [n, hidden] and of the token after each.

        single: whether inputs are made one by one, for bits that do not depend on n.
        """
        size = 1 if single else MOST
        parts = zip(features.split(size), self.device.upload(following).split(size), strict=True)
        return self.run(torch.cat([self.draft.fuse_inputs(*part) for part in parts]))

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """Append entries [n, hidden] to the cache: the last one's logits [1, N]."""
        for part in inputs.split(MOST):
            self.inputs[: len(part)] = part
            logits = self.model.forward(self.places[: len(part)], keep=1)
        return logits

    @torch.inference_mode()
    def commit(self, text: list[int]) -> None:
        """Drop what was predicted, and take the target's features of all that is now committed but the last token."""
        self.model.crop(self.known)
        first = self.known + len(self.waiting)
        found = self.workplace.target.features if self.traced is None else self.traced[first + 1 - self.prompt_tokens :]
        self.waiting = torch.cat([self.waiting.to(found.dtype), found[: len(text) - 1 - first]])

    @torch.inference_mode()
    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> StartTrace:
        """By starts, each fed as a live block feeds it; the target reads the answer first, CHUNK tokens at a time."""
        target, found = self.workplace.target, []
        for chunk in self.device.upload([*prompt[-1:], *answer[:-1]]).split(CHUNK):
            target.forward(chunk, keep=1)
            found.append(target.features)
        self.traced = torch.cat(found)
        return super().trace(prompt, answer, budget, depth)
