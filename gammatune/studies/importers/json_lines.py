"""Logs as JSON lines: every format's file is read here, so that a bad line is one sentence with its number."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gammatune.errors import UserError
from gammatune.records import MOST

LARGEST = 2**32  # bytes; public logs have some tens of millions
LONGEST = 2**15 - 1  # tokens of a block, as tables hold them


@dataclass
class LogFile:
    """A log, read."""

    path: Path
    sha256: str
    lines: list  # what `read` made of each line that is not empty

    @property
    def facts(self) -> dict:
        return {"source": self.path.name, "sha256": self.sha256}


def read_log(path: Path, read: Callable[[dict, int], object], format_hint: str) -> LogFile:
    """read: makes a record of a line's JSON object, given its number from 1; what it raises names what is wrong there.

    Raises UserError for a file that cannot be read or is empty, and with the line's number where it is no JSON object, names
    a key twice, or `read` raises ValueError or KeyError.
    """
    content = read_regular(path)
    records = []
    for number, text in enumerate(content.splitlines(), start=1):
        if not text.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            records.append(read(parse_line(text), number))
        except KeyError as error:
            raise UserError(f"{where} has no {error.args[0]}: {format_hint}.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} cannot be used ({error}): {format_hint}.") from error
    if not records:
        raise UserError(f"The log {path} is empty: {format_hint}.")
    return LogFile(path, hashlib.sha256(content).hexdigest(), records)


def read_regular(path: Path) -> bytes:
    """A log's bytes. Raises UserError where it cannot be read, or is no file of a log's size."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"The log {path} is no regular file: give JSON lines.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"The log {path} is larger than any log ({path.stat().st_size:,} bytes): give JSON lines.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The log {path} cannot be read ({error.strerror}): check the path.") from error


def parse_line(text: bytes) -> dict:
    """Raises ValueError for anything but one JSON object whose keys are all different."""
    try:
        line = json.loads(text, object_pairs_hook=refuse_twice)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("it is not JSON") from error
    return json_object(line, "the line")


def refuse_twice(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON. Raises ValueError where a key is there twice, of which Python would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(
            f"the key {next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)} twice"
        )
    return found


def json_object(value: object, name: str) -> dict:
    """Raises ValueError, naming it, for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


def whole_number(value: object, name: str) -> int:
    """Raises ValueError, naming it, for anything but a whole number that a table can hold."""
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"{name} is no whole number from 0 to {MOST:,}")
    return value


def whole_numbers(values: object, name: str, least: int = 0, most: int = MOST) -> list[int]:
    """A list of whole numbers from least to most. Raises ValueError, naming it, for anything else."""
    if not isinstance(values, list) or not all(type(value) is int and least <= value <= most for value in values):
        raise ValueError(f"{name} is no list of whole numbers from {least} to {most:,}")
    return values
