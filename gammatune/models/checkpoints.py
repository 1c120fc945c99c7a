"""One checkpoint folder: is it there, is it whole, is it of a kind that can decode here, and which weights are these."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from gammatune.config import Checkpoint, Shape
from gammatune.errors import UserError
from gammatune.models import hub

FAMILIES = ("llama", "qwen2", "qwen3")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 65536


@dataclass(frozen=True)
class Located:
    """A checkpoint whose small files are on this disk.

    role: target or draft. name: what to call it in messages. commit: of the hub, None for a local folder. pinned: an
    identity known beforehand.
    """

    role: str
    name: str
    folder: Path
    config: PreTrainedConfig
    checkpoint: Checkpoint
    commit: str | None = None
    pinned: dict | None = None


def locate(role: str, checkpoint: Checkpoint) -> Located:
    """Find config and tokenizer locally or on the hub, without weights. Raises UserError when that fails."""
    if checkpoint.path is None:
        folder = hub.fetch_small_files(role, checkpoint)
        return Located(role, checkpoint.id, folder, read_config(role, checkpoint.id, folder), checkpoint, commit=folder.name)
    folder = Path(checkpoint.path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"model_pair.{role}.path={folder} is no folder: give one that holds config.json, the tokenizer and "
            "the weights, as save_pretrained writes them."
        )
    return Located(role, checkpoint.path, folder, read_config(role, checkpoint.path, folder), checkpoint)


def read_config(role: str, name: str, folder: Path) -> PreTrainedConfig:
    """The folder's config. Raises UserError for a missing or broken config.json, or for a model of another kind."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
        model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    except FileNotFoundError as error:
        raise UserError(
            f"The {role} {name} has no config.json in {folder}: point model_pair.{role}.path at a complete "
            "checkpoint folder."
        ) from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not valid JSON with a model's settings: fetch that file again.") from error
    if model_type not in FAMILIES or any(not name.lower().endswith("forcausallm") for name in architectures):
        kind = ", ".join(architectures) or f"model_type {model_type}"
        raise UserError(
            f"The {role} {name} is a {kind}, which cannot decode here: choose a causal language model of type "
            f"{', '.join(FAMILIES)}."
        )
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def shape_of(config: PreTrainedConfig) -> Shape:
    """The sizes of a Llama-like config."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    sizes = {name: getattr(config, name) for name in names}
    return Shape(**sizes, rope_theta=config.rope_parameters["rope_theta"], head_dim=getattr(config, "head_dim", None))


def load_tokenizer(located: Located):
    """The folder's tokenizer. Raises UserError when it is missing or cannot be read."""
    if not any((located.folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"The {located.role} {located.name} has no tokenizer in {located.folder} (none of "
            f"{', '.join(TOKENIZER_FILES)}): copy the tokenizer files beside the weights."
        )
    needs_conversion = not any((located.folder / name).exists() for name in ("tokenizer.json", "vocab.json"))
    if needs_conversion and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"The tokenizer of {located.name} is a SentencePiece file, as in older Llama checkpoints: run `pip "
            "install sentencepiece protobuf`."
        )
    try:
        return AutoTokenizer.from_pretrained(located.folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise UserError(
            f"The tokenizer of {located.name} in {located.folder} cannot be read ({type(error).__name__}): "
            "fetch its tokenizer files again."
        ) from error


def weight_files(located: Located) -> list[Path]:
    """The files that hold the weights, safetensors before bin, single file before shards.

    Raises UserError when there are none or a shard that the index names is missing.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = located.folder / f"{stem}.{suffix}", located.folder / f"{stem}.{suffix}.index.json"
        if single.exists():
            return [single]
        if index.exists():
            shards = [located.folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            missing = [shard.name for shard in shards if not shard.exists()]
            if missing:
                raise UserError(
                    f"The {located.role} {located.name} lacks {len(missing)} of {len(shards)} weight files in "
                    f"{located.folder} (first: {missing[0]}): fetch them."
                )
            return shards
    raise UserError(
        f"The {located.role} {located.name} has no weights in {located.folder} (neither model.safetensors nor "
        "pytorch_model.bin, nor an index of shards): fetch them, or correct the folder."
    )


def check_whole(path: Path) -> None:
    """Raises UserError for a weight file that was cut short or is no weight file (such as a git-lfs pointer)."""
    if path.suffix == ".bin":
        whole, promised = zipfile.is_zipfile(path), "a complete archive"
    else:
        expected = safetensors_bytes(path)
        whole, promised = path.stat().st_size == expected, f"{expected} bytes" if expected else "a safetensors header"
    if not whole:
        raise UserError(
            f"{path} is truncated or corrupt ({path.stat().st_size} bytes, {promised} expected): delete that "
            "file and fetch it again."
        )


def safetensors_bytes(path: Path) -> int | None:
    """The size that the header promises; None where there is no readable header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size:
            return None
        try:
            header = json.loads(file.read(length))
            return 8 + length + max(tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def identify(located: Located) -> dict:
    """What these weights are: the hub's commit, or a fingerprint of a local folder (its place on disk does not count)."""
    if located.pinned:
        return located.pinned
    if located.commit:
        return {"id": located.checkpoint.id, "revision": located.checkpoint.revision, "commit": located.commit}
    return {"folder": located.folder.name, "fingerprint": fingerprint(located.folder, weight_files(located))}


def fingerprint(folder: Path, weights: list[Path]) -> str:
    """sha256 over the small files that decide an answer and, of each weight file, name, size and evenly spaced blocks:
    quick, also for 140 GB."""
    digest = hashlib.sha256()
    for path in (folder / name for name in ("config.json", "generation_config.json", *TOKENIZER_FILES)):
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


def load_model(located: Located, device: torch.device, dtype: torch.dtype):
    """The model on the device, every weight from the checkpoint. Raises UserError when the files do not fill it."""
    for path in weight_files(located):
        check_whole(path)
    extra = {"device_map": {"": device}} if device.type == "cuda" else {}
    if located.checkpoint.quantization == "int8":
        extra["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            located.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, output_loading_info=True, **extra
        )
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The weights in {located.folder} do not fit their config.json ({reason}): fetch both again."
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"The weights in {located.folder} lack {len(report['missing_keys'])} tensors that config.json asks "
            f"for (first: {min(report['missing_keys'])}): fetch the checkpoint again."
        )
    return model


def require_int8(checkpoint: Checkpoint, role: str, device: torch.device) -> None:
    """Raises UserError where int8 is asked for and cannot work: no GPU, or the extra is not installed."""
    if checkpoint.quantization != "int8":
        return
    if device.type != "cuda":
        raise UserError(f"model_pair.{role}.quantization=int8 works on a CUDA GPU only: set it to null on {device}.")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"model_pair.{role}.quantization=int8 needs bitsandbytes: run `pip install 'gammatune[int8]'`.")
