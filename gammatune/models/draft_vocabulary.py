"""A draft that proposes fewer tokens than its target has: an LM head with rows for the most frequent ones.

The LM head is most of a small draft's step. Where the target wants a token that has no row, the draft is wrong there and
the target corrects it, as ever: answers do not change. FR-Spec (arXiv:2502.14856) does the same.
"""

import copy
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gammatune.config import Checkpoint
from gammatune.errors import UserError
from gammatune.models.int8 import Int8Linear

RANKING_FILE = "token_ranking.npy"
HOW = "make one with `python scripts/rank_tokens.py TOKENIZER_FOLDER TEXT... --out token_ranking.npy`"


def find_ranking(draft: Checkpoint, vocab_size: int, folder: Path | None = None) -> np.ndarray | None:
    """Token ids by falling frequency, None for a draft that proposes all. folder: the draft's, None for random weights.

    Those mean nothing, so that without a file any order serves. Raises UserError for a file that is missing or unusable, or
    too short for draft.vocabulary.
    """
    if draft.vocabulary is None:
        return None
    if draft.ranking is None and folder is None:
        ranking = draw_ranking(vocab_size)
    else:
        ranking = read_ranking(find_file(draft, folder), vocab_size)
    check_length(ranking, draft.vocabulary)
    return ranking


def draw_ranking(vocab_size: int) -> np.ndarray:
    """All ids in an order that has no meaning and is always the same."""
    return np.random.default_rng(0).permutation(vocab_size)


def find_file(draft: Checkpoint, folder: Path | None) -> Path:
    # os.path: Path's own methods raise for an unknown user and for a name that is too long
    path = Path(os.path.expanduser(draft.ranking)) if draft.ranking else folder / RANKING_FILE  # noqa: PTH111
    if os.path.isfile(path):  # noqa: PTH113
        return path
    if draft.ranking:
        raise UserError(f"model_pair.draft.ranking={path} is no file: {HOW}.")
    raise UserError(
        f"model_pair.draft.vocabulary={draft.vocabulary} needs to know which tokens are frequent, and {path} is not there: "
        f"{HOW} and give it as model_pair.draft.ranking, or set model_pair.draft.vocabulary=null."
    )


def read_ranking(path: Path, vocab_size: int) -> np.ndarray:
    """A list of distinct token ids [n], each below vocab_size. Raises UserError for anything else."""
    try:
        ranking = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header can promise more than a file holds
    except Exception as error:  # ValueError, EOFError, OSError; its header is a Python literal, which fails in its own ways
        raise UserError(f"The ranking {path} is no readable .npy file: {HOW}.") from error
    if not isinstance(ranking, np.ndarray) or ranking.ndim != 1 or not np.issubdtype(ranking.dtype, np.integer):
        raise UserError(f"The ranking {path} holds something else than one list of whole numbers: {HOW}.")
    if len(ranking) and not 0 <= ranking.min() <= ranking.max() < vocab_size:
        raise UserError(
            f"The ranking {path} holds ids from {ranking.min()} to {ranking.max()}, but the pair's tokens are 0 to "
            f"{vocab_size - 1}: rank with this pair's tokenizer."
        )
    if len(ranking) > vocab_size or len(np.unique(ranking)) < len(ranking):
        raise UserError(f"The ranking {path} names some tokens twice: {HOW}.")
    return np.array(ranking, dtype=np.int64)


def check_length(ranking: np.ndarray, size: int) -> None:
    if size > len(ranking):
        raise UserError(
            f"model_pair.draft.vocabulary={size} is more than the {len(ranking)} tokens of its ranking: choose fewer."
        )


def choose_ids(ranking: np.ndarray, size: int, eos_ids: tuple[int, ...]) -> np.ndarray:
    """`size` ids [size], rising: every end of an answer, then the ranking's first.

    A draft that cannot end an answer would be wrong at each end. Rising, so that of equal logits the lowest id wins as in a
    whole LM head. Raises UserError when the ranking is too short or the ends alone are too many.
    """
    check_length(ranking, size)
    ends = np.unique(np.array(eos_ids, dtype=np.int64))
    if len(ends) > size:
        raise UserError(
            f"model_pair.draft.vocabulary={size} is less than the {len(ends)} tokens that end an answer: choose more, or "
            "null for all."
        )
    others = ranking[~np.isin(ranking, ends)][: size - len(ends)]
    return np.sort(np.concatenate([ends, others]))


def cut_lm_head(draft: nn.Module, ids: torch.Tensor) -> nn.Module:
    """A draft with the rows `ids` [N] of the given one's LM head; all else is shared with it, and it stays as it is."""
    shared = {id(tensor): tensor for tensor in (*draft.parameters(), *draft.buffers())}
    reduced = copy.deepcopy(draft, shared)
    head = cut_rows(draft.get_output_embeddings(), ids)
    reduced.config.tie_word_embeddings = False
    reduced.set_output_embeddings(head)
    return reduced


def cut_rows(whole: nn.Linear, ids: torch.Tensor) -> nn.Linear:
    """An LM head of the rows `ids` [N] of the given one, in memory of its own."""
    if isinstance(whole, Int8Linear):
        return whole.cut(ids)
    head = nn.Linear(whole.in_features, len(ids), bias=False, device="meta")
    head.weight = nn.Parameter(whole.weight[ids], requires_grad=False)
    return head


def identify(ids: torch.Tensor) -> dict:
    """How many tokens, and a fingerprint of which."""
    return {"size": len(ids), "ids_sha256": hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()}
