"""Answers on disk: files of a few hundred texts, each written whole or not at all, read piece by piece.

A shard is a safetensors file with, for R texts of n_1 to n_R tokens in all:
kinds [R] uint8 (places in recipe.KINDS), sizes [R] int32 (the n), prompts [R] int32 (tokens of each prompt),
ids [sum n] int32, and features [sum (n - 1), hidden] bf16, of every token but a text's last.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gammatune.errors import UserError
from gammatune.files import replacing
from gammatune.training.recipe import KINDS
from gammatune.training.teacher import Answered

REMEDY = "delete that file and run the same command again, which makes it again"
TENSORS = {
    "kinds": torch.uint8,
    "sizes": torch.int32,
    "prompts": torch.int32,
    "ids": torch.int32,
    "features": torch.bfloat16,
}


@dataclass(frozen=True)
class Making:
    """How a shard was made."""

    chats: int  # conversations that were written
    overlapping: int  # of them, dropped because a benchmark asks the like
    long: int  # turns that were dropped because they leave no room for an answer
    seconds: float  # that the target took


NUMBERS = [each.name for each in fields(Making)]


def write_shard(path: Path, texts: list[Answered], kinds: list[str], making: Making) -> None:
    """Atomic. kinds: of each text."""
    tensors = {
        "kinds": torch.tensor([KINDS.index(kind) for kind in kinds], dtype=torch.uint8),
        "sizes": torch.tensor([len(text.ids) for text in texts], dtype=torch.int32),
        "prompts": torch.tensor([text.prompt for text in texts], dtype=torch.int32),
        "ids": torch.cat([text.ids for text in texts]),
        "features": torch.cat([text.features for text in texts]),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, {name: str(getattr(making, name)) for name in NUMBERS})


class Shard:
    """One file, of which features stay on disk until they are asked for. Raises UserError where it is damaged."""

    def __init__(self, path: Path):
        try:
            self.file = safe_open(path, "pt")
            found = {name: self.file.get_tensor(name) for name in TENSORS if name != "features"}
            self.features = self.file.get_slice("features")
            *counts, seconds = (self.file.metadata()[name] for name in NUMBERS)
            self.making = Making(*map(int, counts), float(seconds))
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}): {REMEDY}.") from error
        self.kinds, self.sizes, self.prompts = (
            found[name].numpy().astype(np.int64) for name in ("kinds", "sizes", "prompts")
        )
        self.ids, texts = found["ids"], len(self.sizes)
        typed = all(found[name].dtype == dtype for name, dtype in TENSORS.items() if name != "features")
        whole = len(self.kinds) == len(self.prompts) == texts > 0 and self.sizes.sum() == len(self.ids)
        if not typed or not whole or self.features.get_shape()[0] != len(self.ids) - texts:
            raise UserError(f"{path} holds something else than answers: {REMEDY}.")
        self.begins = np.concatenate([[0], np.cumsum(self.sizes)])

    @property
    def answer_tokens(self) -> int:
        return int((self.sizes - self.prompts).sum())

    def text(self, row: int) -> Answered:
        begin, end = int(self.begins[row]), int(self.begins[row + 1])
        return Answered(self.ids[begin:end], int(self.prompts[row]), self.features[begin - row : end - row - 1])


class Answers:
    """All texts of several shards, numbered through."""

    def __init__(self, paths: list[Path]):
        self.shards = [Shard(path) for path in paths]
        self.places = [(shard, row) for shard in self.shards for row in range(len(shard.sizes))]
        self.sizes = np.concatenate([shard.sizes for shard in self.shards])
        self.prompts = np.concatenate([shard.prompts for shard in self.shards])
        self.kinds = np.concatenate([shard.kinds for shard in self.shards])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Answered:
        shard, row = self.places[number]
        return shard.text(row)

    @property
    def answer_tokens(self) -> int:
        return sum(shard.answer_tokens for shard in self.shards)

    @property
    def making(self) -> Making:
        return Making(*(sum(getattr(shard.making, name) for shard in self.shards) for name in NUMBERS))

    def count_ids(self, vocab_size: int) -> np.ndarray:
        """How often each id [V] occurs in the answers, prompts left out."""
        counts = np.zeros(vocab_size, np.int64)
        for shard in self.shards:
            answered = np.arange(len(shard.ids)) - np.repeat(shard.begins[:-1], shard.sizes) >= np.repeat(
                shard.prompts, shard.sizes
            )
            counts += np.bincount(shard.ids.numpy()[answered], minlength=vocab_size)
        return counts
