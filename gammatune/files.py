"""Files that outlive a process: written whole or not at all, sealed with a checksum, read with suspicion."""

import fcntl
import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeVar

from gammatune.errors import UserError, printable
from gammatune.records import SCHEMA, NewerFileError, refuse_newer

LARGEST_JSON = 64 * 2**20  # bytes; no file of ours comes near
SEALED = 2  # schema from which a JSON file carries its checksum
Content = TypeVar("Content")


def content_hash(content) -> str:
    """Ten hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()[:10]


def canonical(content) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=str).encode()


def hash_file(path: Path) -> str:
    """Hex digits of the SHA-256 of a whole file, about 1 GB a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well, and nothing when it does not.

    A reader sees the old file or the whole new one. A killed process leaves it to the next one that writes the same file.
    """
    if path.exists() and not path.is_file():
        yield path  # such as /dev/stdout, which must not become a file
        return
    name = path.name[:60]  # what is added must not make it longer than names may be
    sweep_partials(path.parent, name)
    partial = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep_partials(folder: Path, name: str = "") -> None:
    """Delete what killed processes left of `replacing` a file of that name; without one, of any file at any depth."""
    pattern = f".{glob.escape(name)}.*.part" if name else "**/.*.part"
    for partial in folder.glob(pattern):
        if not in_progress(partial):
            partial.unlink(missing_ok=True)


def in_progress(partial: Path) -> bool:
    """Whether another process that lives is writing it: a report may be made while its run goes on."""
    writer = partial.name.split(".")[-2]
    if not writer.isdecimal() or int(writer) == os.getpid():
        return False
    with suppress(PermissionError):  # another user's, and alive
        try:
            os.kill(int(writer), 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Write an object atomically, with its schema number and checksum."""
    sealed = json.loads(canonical({"schema": SCHEMA} | content))  # as it will be read: keys are text, tuples are lists
    sealed["checksum"] = hashlib.sha256(canonical(sealed)).hexdigest()
    write_text(path, json.dumps(sealed, indent=1) + "\n")


def read_derived(file: Path, read: Callable[[Path], Content]) -> Content | None:
    """What a file holds that can be made again; None where it is missing, or damaged, which is told.

    Raises UserError where its place is taken by no file, or it was written by a newer gammatune.
    """
    if not file.exists():
        return None
    if not file.is_file():
        raise UserError(f"{file} is no regular file: move it away and run the same command again.")
    try:
        return read(file)
    except NewerFileError:
        raise
    except UserError:
        print(printable(f"gammatune: {file} is damaged or was changed, so it is made again."), file=sys.stderr)
        return None


def read_json(file: Path, remedy: str, known: int = SCHEMA, bare: bool = False) -> dict:
    """A JSON object of ours, its checksum verified and taken off.

    remedy: what to do about a damaged file. known: highest schema number that the caller reads. Files before schema 2 have
    no checksum. bare: whether this kind of file once had no schema number either; it is given 1 then. Raises UserError,
    naming the file, where it is missing, damaged, changed or newer.
    """
    content = parse_object(read_text(file, remedy), file, remedy)
    if bare and not content.keys() & {"schema", "checksum"}:
        return content | {"schema": 1}
    schema, checksum = content.get("schema"), content.pop("checksum", None)
    if type(schema) is not int or schema < 1:
        raise UserError(f"{file} is damaged (no schema number): {remedy}.")
    refuse_newer(schema, file, known=known)
    if checksum is None and schema >= SEALED or checksum not in (None, hashlib.sha256(canonical(content)).hexdigest()):
        raise UserError(f"{file} is damaged or was changed (its checksum does not fit): {remedy}.")
    return content


def read_text(file: Path, remedy: str) -> str:
    """A regular file of bearable size as text. Raises UserError, naming the file."""
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no regular file: {remedy}.")
        if file.stat().st_size > LARGEST_JSON:
            raise UserError(f"{file} is larger than any file of ours ({file.stat().st_size:,} bytes): {remedy}.")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {remedy}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged (no UTF-8 text): {remedy}.") from error


def parse_object(text: str, where: object, remedy: str) -> dict:
    """JSON text as a dict. Raises UserError, naming `where`, for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits are a ValueError too
        raise UserError(f"{where} is damaged ({type(error).__name__}): {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} is damaged (no JSON object): {remedy}.")
    return content


@contextmanager
def hold_folder(path: Path, choice: str = "results=FOLDER"):
    """Make a folder and hold it against a second process; the lock goes with this process, however it ends.

    Raises UserError where it cannot be written or is held; choice: the setting that names another folder.
    """
    make_folder(path, choice)
    with take_lock(path / "lock", choice):
        sweep_partials(path)
        yield


def make_folder(path: Path, choice: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}): choose another folder with {choice}.") from error


def take_lock(file: Path, choice: str) -> TextIO:
    """The locked file, open; closing it lets go."""
    try:
        handle = file.open("a")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"Another process is already running {file.parent}: wait for it, or choose another folder with {choice}."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot lock {file} ({error.strerror}): choose another folder with {choice}.") from error
    return handle
