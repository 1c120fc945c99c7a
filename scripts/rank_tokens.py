"""python scripts/rank_tokens.py TOKENIZER_FOLDER TEXT [TEXT ...] --out token_ranking.npy: which tokens are frequent.

Counts the tokens of plain text files (UTF-8; a folder stands for all files in it) and writes all ids by falling count, equal
and unseen ones by id (`--most N`: the first N), as model_pair.draft.ranking takes them. Texts should be such as the pair
will write; `answer_prompts.py` makes them.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from gammatune.errors import UserError

CHARACTERS = 200_000  # encoded at a time
MOST_IDS = 2**24  # a tokenizer with a higher id is damaged
SIZES = (2048, 4096, 8192, 16384, 32768)  # of reduced vocabularies


def count_tokens(texts: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    """How often each id [V] occurs in the texts, arrays of ids."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in texts:
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def rank_tokens(counts: np.ndarray) -> np.ndarray:
    """All ids [V] by falling count; equal and unseen ones by id, since merges are numbered by their own frequency."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def describe_counts(ranking: np.ndarray, counts: np.ndarray) -> str:
    """One sentence, with the share of the counted tokens that the first of a ranking cover."""
    shares = {size: counts[ranking[:size]].sum() / counts.sum() for size in SIZES if size < len(ranking)}
    cover = ", ".join(f"the first {size} are {share:.2%}" for size, share in shares.items())
    return f"{counts.sum():,} tokens, {np.count_nonzero(counts):,} different ones{': ' if cover else ''}{cover}."


def save_ranking(path: Path, ranking: np.ndarray) -> None:
    """Write the ranking, int32, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, ranking)
    temporary.replace(path)


def find_files(paths: list[Path]) -> list[Path]:
    """Every file named, and every file below a folder named. Raises UserError when one is missing or none is left."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} is not there: name plain text files, or folders of such.")
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    if not files:
        raise UserError(f"{', '.join(map(str, paths))} holds no files: name plain text files, or folders of such.")
    return files


def load_tokenizer(folder: Path):
    """The folder's tokenizer. Raises UserError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise UserError(f"{folder} holds no tokenizer that can be read: name the target's checkpoint folder.") from error


def encode_file(tokenizer, path: Path) -> Iterator[np.ndarray]:
    """Ids of a file's text, piece by piece. Raises UserError for a file that is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(CHARACTERS) + file.readline():
                yield np.array(tokenizer.encode(piece, add_special_tokens=False), dtype=np.int64)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: leave it out or convert it.") from error


def count_files(tokenizer, files: list[Path]) -> np.ndarray:
    """Counts [V]. Raises UserError when there is nothing to count."""
    vocab_size = max(tokenizer.get_vocab().values(), default=0) + 1
    if vocab_size > MOST_IDS:
        raise UserError(f"The tokenizer has a token of number {vocab_size - 1}, which no model has: fetch it again.")
    bar = tqdm(files, unit="file", disable=None, file=sys.stderr)
    counts = count_tokens((ids for path in bar for ids in encode_file(tokenizer, path)), vocab_size)
    if not counts.sum():
        raise UserError("The texts are empty: name files with text in them.")
    return counts


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_FOLDER")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--most", type=int, metavar="N", help="write the first N ids only (default: all)")
    parser.add_argument("--out", type=Path, default=Path("token_ranking.npy"))
    options = parser.parse_args(words)
    try:
        if options.most is not None and options.most < 1:
            raise UserError(f"--most {options.most} must be 1 or more.")
        counts = count_files(load_tokenizer(options.tokenizer), find_files(options.texts))
        ranking = rank_tokens(counts)
        save_ranking(options.out, ranking[: options.most])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Cannot read or write {error.filename} ({error.strerror}): choose another file.", file=sys.stderr)
        return 2
    print(f"{options.out}: {describe_counts(ranking, counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
