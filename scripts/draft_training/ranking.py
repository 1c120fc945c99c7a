"""Which tokens are frequent: counted, ranked, and how much of a text the first of them cover."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

HEADS = (2048, 4096, 8192, 16384)


def count_tokens(texts: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    """How often each id (V,) occurs in the texts, arrays of ids."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in texts:
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def rank_tokens(counts: np.ndarray) -> np.ndarray:
    """All ids (V,) by falling count; equal and unseen ones by id, since merges are numbered by their own frequency."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def cover(ranking: np.ndarray, counts: np.ndarray) -> dict[int, float]:
    """Share of the counted tokens that are among the first of a ranking, for each size of HEADS below the vocabulary."""
    return {head: float(counts[ranking[:head]].sum() / counts.sum()) for head in HEADS if head < len(ranking)}


def describe_counts(ranking: np.ndarray, counts: np.ndarray) -> str:
    """One sentence."""
    shares = ", ".join(f"the first {head} are {share:.2%}" for head, share in cover(ranking, counts).items())
    return f"{counts.sum():,} tokens, {np.count_nonzero(counts):,} different ones{': ' if shares else ''}{shares}."


def save_ranking(path: Path, ranking: np.ndarray) -> None:
    """Write the ranking (V,), int32, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, ranking)
    temporary.replace(path)
