"""Is a stored acceptance table what was written? A checksum over the whole file, and bounds on every value.

The checksum stands in the Parquet footer, as the SHA-256 of the file with zeros in its place. So it covers every byte, is
verified before any of them is decoded, and costs a few milliseconds per 10 MB.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gammatune.records import FINISHES, SIGNAL_DIGITS
from gammatune.traces import MATCH, MISMATCH, UNKNOWN

SEAL, DIGITS = b"gammatune-sha256:", 64
SEALED = re.compile(SEAL + rb"([0-9a-f]{%d})" % DIGITS)
BLANK = b"0" * DIGITS
#: key of the footer and value to write before `seal`
SEAL_METADATA = {"gammatune checksum": SEAL + BLANK}
MANY = 2**31 - 1
#: facts that are read from a table's metadata -> what they must be
FACTS: dict[str, Callable] = {
    "gamma_max": lambda fact: type(fact) is int and 0 <= fact <= MANY,
    "forwards_per_token": lambda fact: type(fact) is int and 0 <= fact <= MANY,
    "forwards_by_proposer": lambda fact: (
        isinstance(fact, list) and fact and all(type(each) is int and 0 <= each <= MANY for each in fact)
    ),
    "pair": lambda fact: isinstance(fact, str),
}


def seal(file: Path) -> None:
    """Put the checksum into a Parquet file that was written with SEAL_METADATA."""
    content = bytearray(file.read_bytes())
    digits = content.rindex(SEAL + BLANK) + len(SEAL)
    content[digits : digits + DIGITS] = hashlib.sha256(content).hexdigest().encode()
    file.write_bytes(content)


def check_seal(content: bytes) -> bool | None:
    """Whether the checksum fits; None where there is none."""
    found = list(SEALED.finditer(content, max(0, content.rfind(SEAL))))
    if not found:
        return None
    start, end = found[-1].span(1)
    whole, view = hashlib.sha256(), memoryview(content)
    for part in (view[:start], BLANK, view[end:]):
        whole.update(part)
    return whole.hexdigest().encode() == found[-1][1]


@dataclass
class Lists:
    """A column of lists: row i is values[offsets[i] : offsets[i + 1]], or missing."""

    values: np.ndarray
    offsets: np.ndarray  # [rows + 1]
    present: np.ndarray  # [rows], bool

    @classmethod
    def of(cls, column: pa.ListArray) -> "Lists":
        present = column.is_valid().to_numpy(zero_copy_only=False)
        return cls(column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy(), present)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def rows(self) -> list[np.ndarray | None]:
        spans = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), self.present.tolist(), strict=True)
        return [self.values[start:end] if present else None for start, end, present in spans]

    def sums(self) -> np.ndarray:
        """[rows]."""
        totals = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        return totals[self.offsets[1:]] - totals[self.offsets[:-1]]

    def owners(self, places: np.ndarray) -> np.ndarray:
        """Rows of these places in `values`."""
        return np.searchsorted(self.offsets, places, side="right") - 1

    def outside(self, low: int, high: int) -> np.ndarray:
        """Rows that hold a value below low or above high."""
        if not len(self.values) or (self.values.min() >= low and self.values.max() <= high):
            return np.zeros(0, int)
        return self.owners(np.flatnonzero((self.values < low) | (self.values > high)))


@dataclass
class Fault:
    """What is wrong with a table, and in which row."""

    row: int
    what: str


Columns = dict[str, "list | Lists"]


def find_fault(columns: Columns, signals: dict[str, list[str]], facts: dict) -> Fault | None:
    """The first contradiction of a table that has all columns. signals: field of the trace -> its three columns.

    Every number that a replay uses has bounds here, so that no stored file can make one go backwards or for ever.
    """
    checks = [check_plain, check_text if "match" in columns else check_starts]
    for check in checks:
        for what, rows in check(columns, signals, facts):
            rows = np.asarray(rows)
            bad = np.flatnonzero(rows) if rows.dtype == bool else rows
            if len(bad):
                return Fault(int(bad[0]), what)
    return None


def check_plain(columns: Columns, signals: dict, facts: dict):
    """Yield (what, rows where it is so) for what all layouts share, and for the ranges of signals."""
    numbers = {name: np.array(columns[name]) for name in ("question_id", "turn", "prompt_tokens", "budget")}
    ids, tokens = columns["output_ids"], answer_lengths(columns)
    keys = list(zip(columns["question_id"], columns["turn"], strict=True))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    yield "answered twice", np.array([first[key] != row for row, key in enumerate(keys)])
    yield "a turn below 0", numbers["turn"] < 0
    yield "a negative prompt length", numbers["prompt_tokens"] < 0
    yield "an empty answer, or one longer than its budget", (tokens < 1) | (tokens > numbers["budget"])
    yield "an unknown finish", np.array([finish not in FINISHES for finish in columns["finish"]])
    yield "not one id per token", (ids.lengths != tokens) & (ids.lengths != 0)
    yield "a negative id", ids.outside(0, MANY)
    one = 10**SIGNAL_DIGITS
    for names in signals.values():
        for name, high in zip(names, (one, MANY, one), strict=True):  # top1, entropy, margin
            yield f"{name} out of range", columns[name].outside(0, high)


def answer_lengths(columns: Columns) -> np.ndarray:
    return columns["match" if "match" in columns else "right"].lengths


def check_text(columns: Columns, signals: dict, facts: dict):
    match, steps, ended = (columns[name] for name in ("match", "tail_steps", "tail_ended"))
    head, continuations = ([columns[name] for name in signals[each]] for each in ("signals", "continuations"))
    yield "a match that is none", match.outside(min(MATCH, MISMATCH, UNKNOWN), max(MATCH, MISMATCH, UNKNOWN))
    yield "continuations out of range", steps.outside(0, facts.get("gamma_max") or MANY)
    wrong = Lists(match.values == MISMATCH, match.offsets, match.present).sums()
    unwatched = ~head[0].present & (steps.lengths == 0)  # imported logs know of no continuations
    yield "not one continuation per wrong token", ~unwatched & (steps.lengths != wrong) | (steps.lengths != ended.lengths)
    yield "not one signal per token", np.any([(c.lengths != match.lengths) & c.present for c in head], axis=0)
    told = steps.sums()
    yield "continuations of another length", np.any([(c.lengths != told) & c.present for c in continuations], axis=0)
    yield from check_ids(columns, match.lengths + told)


def check_starts(columns: Columns, signals: dict, facts: dict):
    right, proposed, ended, more = (columns[name] for name in ("right", "proposed", "ended", "more"))
    lists = [columns[name] for name in signals["signals"]]
    yield "lists of different lengths", np.any([c.lengths != right.lengths for c in (proposed, ended, more)], axis=0)
    yield "a negative number", right.outside(0, MANY)
    yield "more right than proposed", right.owners(np.flatnonzero(right.values > proposed.values))
    left = np.repeat(right.offsets[1:], right.lengths) - np.arange(len(right.values))
    yield "more right than the answer has left", right.owners(np.flatnonzero(right.values > left))
    told = proposed.sums()
    yield "not one signal per proposed token", np.any([(c.lengths != told) & c.present for c in lists], axis=0)
    yield from check_ids(columns, told)
    yield from check_proposers(columns, right.lengths, len(facts.get("forwards_by_proposer", [0])))


def check_proposers(columns: Columns, tokens: np.ndarray, drafters: int):
    """tokens: of the answers [rows]."""
    for name in ("proposer", "late"):  # from schema 4 on, where there are several
        if name in columns:
            yield f"not one {name} per token", (columns[name].lengths != tokens) & columns[name].present
    if "proposer" in columns:
        yield "a proposer that is none", columns["proposer"].outside(0, drafters - 1)


def check_ids(columns: Columns, proposed: np.ndarray):
    """proposed: tokens that the drafter proposed in all [rows]."""
    if "proposed_ids" in columns:  # from schema 3 on, where recorded
        ids = columns["proposed_ids"]
        yield "not one id per proposed token", (ids.lengths != proposed) & ids.present
        yield "a negative id", ids.outside(0, MANY)


def find_bad_fact(facts: dict) -> str | None:
    """Name of a fact that is none."""
    return next((name for name, sound in FACTS.items() if name in facts and not sound(facts[name])), None)
