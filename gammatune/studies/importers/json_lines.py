"""Logs as JSON lines: every format's file is read here, so that a bad line is one sentence with its number."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gammatune.errors import UserError


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

    Raises UserError for a file that cannot be read or is empty, and with the line's number where `read` raises ValueError,
    KeyError or TypeError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The log {path} cannot be read ({error.strerror}): check the path.") from error
    records = []
    for number, text in enumerate(content.splitlines(), start=1):
        if not text.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {format_hint}.") from error
        try:
            records.append(read(line, number))
        except KeyError as error:
            raise UserError(f"{where} has no {error.args[0]}: {format_hint}.") from error
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"{where} cannot be used ({error}): {format_hint}.") from error
    if not records:
        raise UserError(f"The log {path} is empty: {format_hint}.")
    return LogFile(path, hashlib.sha256(content).hexdigest(), records)


def whole_numbers(values, name: str, least: int = 0) -> list[int]:
    """A list of whole numbers of `least` or more. Raises ValueError, naming it, for anything else."""
    if not isinstance(values, list) or not all(type(value) is int and value >= least for value in values):
        raise ValueError(f"{name} is no list of whole numbers of {least} or more")
    return values
