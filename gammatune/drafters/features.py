"""A feature draft: one decoder layer over the target's last hidden states (gammatune.models.feature_draft).

Its cache holds one entry for each position i that has a successor, made of the target's feature there and token i + 1. The
target's features come with its own forwards, at no forward more. Within a block the draft goes on from the features that it
predicts; those entries are dropped when the round ends, and what was accepted is read again, with the target's features, by
the next block's first step. So a proposal depends on where its block began.
"""

import os
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from gammatune.drafters.base import Workplace, count_right, make_columns
from gammatune.drafters.chain import ChainDrafter
from gammatune.drafters.signals import find_best, measure_signals, name_tokens
from gammatune.errors import UserError
from gammatune.files import hash_file
from gammatune.models.feature_draft import FILE, HOW, FeatureDraft
from gammatune.models.pair import Pair
from gammatune.records import Block
from gammatune.runtimes.base import wrap_model
from gammatune.runtimes.finite import nonfinite
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
        """By starts; the target reads the answer first, CHUNK tokens at a time.

        Where the model takes masks, all starts advance side by side. Elsewhere each is fed as a live block feeds it.
        """
        target, found = self.workplace.target, []
        for chunk in self.device.upload([*prompt[-1:], *answer[:-1]]).split(CHUNK):
            target.forward(chunk, keep=1)
            found.append(target.features)
        self.traced = torch.cat(found)
        if not self.model.takes_masks:
            return super().trace(prompt, answer, budget, depth)
        blocks = [StartedBlock(place, min(depth, budget - 1 - place)) for place in range(len(answer))]
        self.propose_all(blocks, [*prompt[-1:], *answer[:-1]])
        return join_blocks(blocks, answer, depth)

    def propose_all(self, blocks: list["StartedBlock"], before: list[int]) -> None:
        """Fill the blocks of an answer side by side in one cache. before: the token before each block's start.

        A block sees the target's features up to its start, and its own tokens. Raises NonFiniteError.
        """
        alive = blocks[self.prompt_tokens == 1 :]  # nothing can start from a prompt of one token, which has no feature
        if not alive:
            return
        fed = self.device.upload(before[len(blocks) - len(alive) :])  # [a]
        read = self.read_each(torch.cat([self.waiting.to(self.traced.dtype), self.traced])[: len(alive)], fed)
        known = torch.arange(self.model.length, device=fed.device)  # entries of the target's features
        owners = fed[:0]  # the start of each predicted entry, which follow those
        while True:
            tokens, measured = name_tokens(find_best(read.logits), self.ids), measure_signals(read.logits)
            for block, token, values in zip(alive, tokens.tolist(), measured.tolist(), strict=True):
                if block.goes_on:  # false for one that has no room at all
                    block.add(token, values, self.workplace.ends)
                    self.refuse_nonfinite(block)
            kept = self.device.upload([row for row, block in enumerate(alive) if block.goes_on])
            alive = [block for block in alive if block.goes_on]
            if not alive:
                return
            starts = self.device.upload([block.start for block in alive])
            seen = self.prompt_tokens - 1 + starts  # [a], entries of the target's features that each follows
            own = torch.eye(len(alive), dtype=torch.bool, device=fed.device)
            mask = torch.cat([known < seen[:, None], owners == starts[:, None], own], dim=1)
            positions = seen + len(alive[0].ids) - 1  # all that are alive have as many tokens
            read = self.read_each(read.features[kept], tokens[kept], positions, mask)
            owners = torch.cat([owners, starts])

    def read_each(self, features: torch.Tensor, tokens: torch.Tensor, positions=None, mask=None) -> "Read":
        """Append entries [a] to the cache, MOST at a time. positions [a] and mask [a, cached + a] as for a model."""
        logits, predicted = [], []
        for first in range(0, len(tokens), MOST):
            part = slice(first, first + MOST)
            inputs = self.draft.fuse_inputs(features[part], tokens[part])
            self.inputs[: len(inputs)] = inputs
            places, after = self.places[: len(inputs)], self.model.length + len(inputs)
            where = {} if mask is None else {"positions": positions[part], "mask": mask[part, :after]}
            logits.append(self.model.forward(places, len(inputs), **where))
            predicted.append(self.model.features)
        return Read(torch.cat(logits), torch.cat(predicted))

    def refuse_nonfinite(self, block: "StartedBlock") -> None:
        if not isfinite(block.signals[-1][0]):
            raise nonfinite("draft", block.start + len(block.ids) - 1, self.model.dtype)


@dataclass
class Read:
    """What a forward over a entries leaves."""

    logits: torch.Tensor  # [a, N]
    features: torch.Tensor  # [a, hidden], predicted


@dataclass
class StartedBlock:
    """What is proposed from one position of an answer."""

    start: int  # the position
    room: int  # tokens that it may get
    ids: list[int] = field(default_factory=list)
    signals: list[list[float]] = field(default_factory=list)  # top1, entropy and margin of each
    ended: bool = False  # the last of them ends the sequence

    @property
    def goes_on(self) -> bool:
        return not self.ended and len(self.ids) < self.room

    def add(self, token: int, signals: list[float], ends: frozenset[int]) -> None:
        self.ids.append(token)
        self.signals.append(signals)
        self.ended = token in ends


def join_blocks(blocks: list[StartedBlock], answer: list[int], depth: int) -> StartTrace:
    """depth: tokens recorded per start at most."""
    right = [count_right(block.ids, answer[block.start :]) for block in blocks]
    return StartTrace(
        right=np.array(right, np.int16),
        proposed=np.array([len(block.ids) for block in blocks], np.int16),
        ended=np.array([block.ended for block in blocks], bool),
        more=np.array([not block.ended and len(block.ids) == depth for block in blocks], bool),
        signals=make_columns(np.array([row for block in blocks for row in block.signals]).reshape(-1, 3)),
        ids=np.array([token for block in blocks for token in block.ids], np.int32),
    )
