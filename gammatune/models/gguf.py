"""GGUF checkpoints: settings and tokenizer become plain files once, weights are dequantised tensor by tensor at every start.

transformers' own loader holds all weights in fp32 at once, which takes twice the memory of a 16-bit run. Names and
layouts of the tensors are llama.cpp's (ggml-org/llama.cpp, gguf-py/gguf/constants.py). The plain files lie in the cache with
a manifest of their checksums, which is compared at every start.
"""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from gammatune.errors import UserError, clip
from gammatune.files import hash_file, read_json, write_json
from gammatune.machine import available_cores, cache_dir
from gammatune.models.gguf_header import Header, read_header
from gammatune.models.wheels import discard

INDEX, MANIFEST = "tensors.json", "manifest.json"
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
#: what AutoTokenizer finds for a model of that type, after it has read the whole file once more
TOKENIZERS = {"llama": PreTrainedTokenizerFast, "qwen2": Qwen2Tokenizer, "qwen3": Qwen2Tokenizer}
ROWS = 4096  # of a matrix that are dequantised at once
SCALED = (
    "{path} scales its RoPE frequencies ({where}), which is not read from a GGUF file: give the folder of the checkpoint "
    "that it was made of."
)
UNUSED = "rope_freqs"  # divisors of the RoPE frequencies


def describe_once(path: Path, sha256: str) -> Path:
    """Folder with the file's settings, tokenizer and tensor index, made on the first call and where one of them changed.

    sha256: of the file. Reading them out of it takes some seconds, since its vocabulary is read token by token. Raises
    UserError for a file that is no model.
    """
    folder = cache_dir() / f"gguf-{sha256[:12]}"
    if is_described(folder, sha256):
        return folder
    try:
        with FileLock(folder.with_suffix(".lock")):
            if not is_described(folder, sha256):
                print(f"Reading the settings of {path.name}, once.", file=sys.stderr, flush=True)
                work = folder.with_suffix(".partial")
                discard(work)
                work.mkdir()
                try:
                    describe(path, work)
                    files = {each.name: hash_file(each) for each in work.iterdir()}
                    write_json(work / MANIFEST, {"gguf_sha256": sha256, "files": files})
                    discard(folder)
                    work.rename(folder)
                finally:
                    discard(work)  # of a file that was refused; a killed call leaves it to the next one
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}): set GAMMATUNE_CACHE to another folder."
        ) from error
    return folder


def is_described(folder: Path, sha256: str) -> bool:
    """Whether the folder is as it was made, every byte of it."""
    try:
        manifest = read_json(folder / MANIFEST, "fetch again")
        files = {path.name: path for path in folder.iterdir() if path.name != MANIFEST and not path.name.startswith(".")}
        whole = manifest["gguf_sha256"] == sha256 and manifest["files"].keys() == files.keys()
        links = any(path.is_symlink() or not path.is_file() for path in files.values())
        return whole and not links and all(hash_file(path) == manifest["files"][name] for name, path in files.items())
    except (UserError, OSError, KeyError, AttributeError):
        return False


def describe(path: Path, folder: Path) -> None:
    """Write config, tokenizer and generation config as plain files, and where each tensor lies in the file."""
    with explained(path):
        header = read_header(path)
    check_header(path, header)
    settings = folder / "settings.gguf"
    settings.write_bytes(header.without_vocabulary())
    with explained(path):
        config = AutoConfig.from_pretrained(folder, gguf_file=settings.name, trust_remote_code=False)
        tokenizer = TOKENIZERS[config.model_type].from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    settings.unlink()
    # Without an output table of its own, a model reads its embeddings there
    config.tie_word_embeddings = "output.weight" not in header.tensors
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": config.eos_token_id, "bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(**ends).save_pretrained(folder)
    places = {
        name: {"type": int(place.kind), "offset": place.offset, "shape": list(place.shape)}
        for name, place in header.tensors.items()
    }
    write_json(folder / INDEX, {"tensors": places})


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises UserError for whatever several libraries make of a file that is no model."""
    try:
        yield
    except Exception as error:
        words = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"{path} is not read as a model ({words}): give a GGUF file of a Llama or Qwen model.") from error


def check_header(path: Path, header: Header) -> None:
    """Raises UserError for a model of another kind, one whose settings transformers does not read, and one without words."""
    kind = header.scalars.get("general.architecture")
    if kind not in TOKENIZERS:
        found = "names no architecture" if kind is None else f"holds a model of architecture {clip(str(kind))}"
        raise UserError(f"{path} {found}, so it cannot decode here: give a GGUF file of one of {', '.join(TOKENIZERS)}.")
    linear = header.scalars.get(f"{kind}.rope.scale_linear", 1)
    factor = header.scalars.get(f"{kind}.rope.scaling.factor", linear)
    if factor != 1 or header.scalars.get(f"{kind}.rope.scaling.type", "none") not in ("none", "linear"):
        raise UserError(SCALED.format(path=path, where=f"{kind}.rope.scaling"))
    if not header.lengths.get("tokenizer.ggml.tokens"):
        raise UserError(f"{path} holds no tokenizer (tokenizer.ggml.tokens): give a GGUF file with its vocabulary.")


def read_weights(path: Path, index: Path, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights of a described file by their names in transformers, in dtype. Raises UserError for an unknown tensor."""
    tensors = read_json(index, "fetch the checkpoint again")["tensors"]
    for name in (name for name in tensors if name.startswith(UNUSED)):
        refuse_scaled_angles(path, name, tensors[name])
    wanted = {name: transformers_name(name, path) for name in tensors if not name.startswith(UNUSED)}
    read = partial(read_tensor, path, config=config, dtype=dtype)
    with ThreadPoolExecutor(available_cores()) as pool:
        found = pool.map(lambda name: read(name, tensors[name]), wanted)
        return dict(zip(wanted.values(), found, strict=True))


def refuse_scaled_angles(path: Path, name: str, place: dict) -> None:
    """Raises UserError where RoPE frequencies have divisors, as from Llama 3.1 on: no key of the file tells them."""
    plain = place["type"] == GGMLQuantizationType.F32
    stored = partial(np.memmap, path, mode="r", dtype=np.float32, offset=place["offset"], shape=tuple(place["shape"]))
    if not plain or (stored() != 1).any():
        raise UserError(SCALED.format(path=path, where=name))


def transformers_name(name: str, path: Path) -> str:
    """Raises UserError for a tensor that no Llama or Qwen has."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in PARTS:
        return f"model.layers.{layer[1]}.{PARTS[layer[2]]}.{layer[3]}"
    part, _, kind = name.rpartition(".")
    if part in OUTSIDE:
        return f"{OUTSIDE[part]}.{kind}"
    raise UserError(f"{path} has a tensor {name}, which no Llama or Qwen model has: give another file.")


def read_tensor(path: Path, name: str, place: dict, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    """One tensor, dequantised. place: type, offset and shape [rows, bytes or numbers of a row] in the file."""
    kind = GGMLQuantizationType(place["type"])
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind, np.uint8)
    stored = np.memmap(path, mode="r", dtype=plain, offset=place["offset"], shape=tuple(place["shape"]))
    # some rows at a time, since a vocabulary's table in fp32, several times over, would be the peak of all memory
    try:
        rows = [
            torch.from_numpy(dequantize(np.array(some), kind)).to(dtype) for some in np.array_split(stored, pieces(stored))
        ]
    except NotImplementedError as error:
        raise UserError(
            f"{path} stores {name} as {kind.name}, which cannot be read here: give another quantization."
        ) from error
    weight, part = torch.cat(rows), name.split(".")[-2]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    # llama.cpp turns the halves of each head of a Llama into neighbours, and of no other model
    if config.model_type == "llama" and part in heads:
        weight = weight.view(heads[part], -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    return weight


def pieces(stored: np.ndarray) -> int:
    return -(-len(stored) // ROWS) if stored.ndim > 1 else 1
