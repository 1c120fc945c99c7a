"""Files that runs and recordings are made of: JSON written atomically, content hashes, folders that one process holds."""

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from gammatune.errors import UserError
from gammatune.records import refuse_newer

UNUSABLE = "delete that folder and run it again"


def content_hash(content) -> str:
    """Ten hex digits of the SHA-256 of the canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_json(path: Path, content) -> None:
    """Write atomically: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    temporary.replace(path)


def read_json(file: Path, schema: bool = True) -> dict:
    """A JSON object from a file. schema: whether it carries a schema number. Raises UserError naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {UNUSABLE}.") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): {UNUSABLE}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged (no JSON object): {UNUSABLE}.")
    if schema:
        if not isinstance(content.get("schema"), int):
            raise UserError(f"{file} is damaged (no schema number): {UNUSABLE}.")
        refuse_newer(content["schema"], file, "update gammatune, or choose another folder with results=FOLDER")
    return content


@contextmanager
def hold_folder(path: Path, choice: str = "results=FOLDER"):
    """Make a folder and hold it against a second process; the lock goes with this process, however it ends.

    Raises UserError where it cannot be written or is held; choice: the setting that names another folder.
    """
    make_folder(path, choice)
    with (path / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is already running {path}: wait for it, or choose another folder with {choice}."
            ) from error
        yield


def make_folder(path: Path, choice: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}): choose another folder with {choice}.") from error
