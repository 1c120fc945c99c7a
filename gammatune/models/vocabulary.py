"""A draft that can say fewer tokens than its target: an output head with rows for the most frequent ones.

The head is most of a small draft's step. Where the target wants a token that has no row, the draft is wrong there and the
target corrects it, as ever: answers do not change.
"""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gammatune.config import Checkpoint
from gammatune.errors import UserError

RANKING_FILE = "token_ranking.npy"
HOW = "make one with `python scripts/rank_tokens.py TOKENIZER_FOLDER TEXT... --out token_ranking.npy`"


def find_ranking(draft: Checkpoint, vocab_size: int, folder: Path | None = None) -> np.ndarray | None:
    """Token ids by falling frequency, None for a whole head. folder: the draft's, None for weights made on the spot.

    Those mean nothing, so that without a file any order serves. Raises UserError for a file that is missing or unusable, or
    too short for the head.
    """
    if draft.head is None:
        return None
    if draft.ranking is None and folder is None:
        ranking = draw_ranking(vocab_size)
    else:
        path = Path(draft.ranking).expanduser() if draft.ranking else folder / RANKING_FILE
        require_file(path, draft)
        ranking = read_ranking(path, vocab_size)
    require_length(ranking, draft.head)
    return ranking


def draw_ranking(vocab_size: int) -> np.ndarray:
    """All ids in an order that has no meaning and is always the same."""
    return np.random.default_rng(0).permutation(vocab_size)


def require_file(path: Path, draft: Checkpoint) -> None:
    if path.is_file():
        return
    if draft.ranking:
        raise UserError(f"model_pair.draft.ranking={path} is no file: {HOW}.")
    raise UserError(
        f"model_pair.draft.head={draft.head} needs to know which tokens are frequent, and {path} is not there: {HOW} and "
        "give it as model_pair.draft.ranking, or set model_pair.draft.head=null."
    )


def read_ranking(path: Path, vocab_size: int) -> np.ndarray:
    """A list of distinct token ids [n], each below vocab_size. Raises UserError for anything else."""
    try:
        ranking = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"The ranking {path} is no readable .npy file: {HOW}.") from error
    if not isinstance(ranking, np.ndarray) or ranking.ndim != 1 or not np.issubdtype(ranking.dtype, np.integer):
        raise UserError(f"The ranking {path} holds something else than one list of whole numbers: {HOW}.")
    if len(ranking) and not 0 <= ranking.min() <= ranking.max() < vocab_size:
        raise UserError(
            f"The ranking {path} holds ids from {ranking.min()} to {ranking.max()}, but the pair's tokens are 0 to "
            f"{vocab_size - 1}: rank with this pair's tokenizer."
        )
    if len(np.unique(ranking)) < len(ranking):
        raise UserError(f"The ranking {path} names some tokens twice: {HOW}.")
    return ranking.astype(np.int64)


def require_length(ranking: np.ndarray, head: int) -> None:
    if head > len(ranking):
        raise UserError(f"model_pair.draft.head={head} is more than the {len(ranking)} tokens of its ranking: choose fewer.")


def choose_rows(ranking: np.ndarray, head: int, eos_ids: tuple[int, ...]) -> np.ndarray:
    """`head` ids [head], rising: every end of an answer, then the ranking's first.

    A draft that cannot end an answer would be wrong at each end. Rising, so that of equal logits the lowest id wins as in a
    whole head. Raises UserError when the ranking is too short or the ends alone are too many.
    """
    require_length(ranking, head)
    ends = np.unique(np.array(eos_ids, dtype=np.int64))
    if len(ends) > head:
        raise UserError(
            f"model_pair.draft.head={head} has no room for the {len(ends)} tokens that end an answer: choose more, or null "
            "for all."
        )
    others = ranking[~np.isin(ranking, ends)][: head - len(ends)]
    return np.sort(np.concatenate([ends, others]))


def reduce_head(draft: nn.Module, rows: torch.Tensor) -> nn.Module:
    """A draft with `rows` [N] of the given one's output head; the given one stays as it is, all else is shared with it."""
    shared = {id(tensor): tensor for tensor in (*draft.parameters(), *draft.buffers())}
    reduced = copy.deepcopy(draft, shared)
    whole = draft.get_output_embeddings().weight
    head = nn.Linear(whole.shape[1], len(rows), bias=False, device="meta")
    head.weight = nn.Parameter(whole[rows], requires_grad=False)
    reduced.config.tie_word_embeddings = False
    reduced.set_output_embeddings(head)
    return reduced


def identify(rows: torch.Tensor) -> dict:
    """How many rows, and a fingerprint of which."""
    ids = rows.cpu().numpy().astype("<i8").tobytes()
    return {"rows": len(rows), "ids_sha256": hashlib.sha256(ids).hexdigest()}
