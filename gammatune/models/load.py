"""From a checkpoint's files to a model: its settings, its tokenizer, whether it fits the memory, its weights."""

import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from gammatune.config import MODEL_TYPES, Checkpoint, Shape, check_sizes
from gammatune.errors import UserError
from gammatune.files import parse_object, read_text
from gammatune.models.devices import GIB, free_bytes
from gammatune.models.gguf import INDEX, read_weights
from gammatune.models.int8 import quantise
from gammatune.models.pages import drop_pages
from gammatune.models.sources import TOKENIZER_FILES, Files, check_whole, find_own_code, weight_files

MOST_LABELS = 100_000
PLANNED_TOKENS = 2048  # context that a run is assumed to fill when the KV caches are counted


def read_config(files: Files) -> PreTrainedConfig:
    """The folder's config. Raises UserError for a missing or broken config.json, or for a model of another kind."""
    path = files.folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"The {files.role} {files.name} has no config.json in {files.folder}: point model_pair.{files.role}.path at a "
            "complete checkpoint folder."
        )
    labels = parse_object(read_text(path, "fetch it again"), path, "fetch it again").get("num_labels") or 0
    if type(labels) is not int or labels > MOST_LABELS:  # transformers would write a name for each
        raise UserError(f"{path}: num_labels={labels!r} has no meaning for a language model: take it out.")
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, RecursionError, or what its validators raise
        refuse_own_code(files, "model")
        raise UserError(
            f"{path} is not a model's settings as transformers reads them ({first_line(error)}): fetch that file again, or "
            f"correct model_pair.{files.role}.path."
        ) from error
    kinds = config.architectures or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise UserError(f"{path} has architectures={kinds!r} where a list of names belongs: fetch that file again.")
    if config.model_type not in MODEL_TYPES or not all(kind.lower().endswith("forcausallm") for kind in kinds):
        refuse_own_code(files, "model")
        raise UserError(
            f"The {files.role} {files.name} is a {', '.join(kinds) or config.model_type}, which cannot decode here: choose "
            f"a causal language model of type {', '.join(MODEL_TYPES)}."
        )
    if getattr(config, "transformers_weights", None) is not None:
        raise UserError(f"{path} names a weight file of its own (transformers_weights): take that line out.")
    check_sizes(f"{path}: ", config)
    if not 0 <= config.rms_norm_eps < 1:
        raise UserError(f"{path}: rms_norm_eps={config.rms_norm_eps} must be a number from 0 to 1: fetch that file again.")
    return config


def refuse_own_code(files: Files, what: str) -> None:
    """Raises UserError where the reason is that a checkpoint brings code along."""
    wanted = find_own_code(files.folder)
    if wanted:
        raise UserError(
            f"The {what} of {files.role} {files.name} wants to run its own code ({wanted} in {files.folder}), which "
            "gammatune never does: use a checkpoint that transformers loads by itself."
        )


def first_line(error: BaseException) -> str:
    """Of the first cause, since validators wrap it in words of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")[:300]


def load_tokenizer(files: Files):
    """The folder's tokenizer, tried once. Raises UserError when it is missing, cannot be read or does not work."""
    if not any((files.folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"The {files.role} {files.name} has no tokenizer in {files.folder} (none of "
            f"{', '.join(TOKENIZER_FILES)}): copy the tokenizer files beside the weights."
        )
    needs_conversion = not any((files.folder / name).exists() for name in ("tokenizer.json", "vocab.json"))
    if needs_conversion and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"The tokenizer of {files.name} is a SentencePiece file, as in older Llama checkpoints: run `pip "
            "install sentencepiece protobuf`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode("a text"))
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        refuse_own_code(files, "tokenizer")
        raise UserError(
            f"The tokenizer of {files.role} {files.name} in {files.folder} cannot be read ({first_line(error)}): "
            "fetch its tokenizer files again."
        ) from error


def check_int8(checkpoint: Checkpoint, role: str, device: torch.device) -> None:
    """Raises UserError where int8 is asked for and cannot work: on a GPU with borrowed tables or without bitsandbytes."""
    if checkpoint.quantization != "int8" or device.type == "cpu":  # gammatune.models.int8 serves a CPU
        return
    if device.type != "cuda":
        raise UserError(f"model_pair.{role}.quantization=int8 works on a CPU or CUDA GPU only: set it to null on {device}.")
    if checkpoint.borrows_tables:
        raise UserError(f"A draft with borrowed tables is not quantised on a GPU: set model_pair.{role}.quantization=null.")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"model_pair.{role}.quantization=int8 needs bitsandbytes: run `pip install 'gammatune[int8]'`.")


@dataclass(frozen=True)
class Demand:
    """One model of a pair, as far as its memory goes."""

    config: PreTrainedConfig
    checkpoint: Checkpoint  # quantisation, reduced vocabulary and borrowed tables change what it takes
    dtype: torch.dtype
    origin: str = "its shape"  # where the config comes from, for a refusal


def build_empty(demand: Demand) -> nn.Module:
    """The model on torch's meta device, which holds shapes without numbers.

    Raises UserError for settings that transformers can neither build nor run, before any memory is taken.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(demand.config, dtype=demand.dtype, attn_implementation="sdpa")
            run_one_layer(model)
        turns = type(model.model.rotary_emb)(demand.config)(torch.zeros(1), torch.arange(2)[None])
        if not all(table.isfinite().all() for table in turns):
            raise ValueError("its RoPE angles are no numbers")
    except Exception as error:  # whatever a setting leads to
        raise UserError(
            f"{demand.origin} describes no model that transformers can run ({first_line(error)}): correct its settings."
        ) from error
    return model


def run_one_layer(model: nn.Module) -> None:
    """A forward of two tokens as decoding does it, on the meta device. Raises whatever odd settings lead to."""
    model.model.layers, layers = model.model.layers[:1], model.model.layers
    try:
        model(torch.zeros(1, 2, dtype=torch.long), past_key_values=DynamicCache(), use_cache=True).logits.argmax()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):  # else transformers wants a number where there is none: no fault of the settings
            raise
    finally:
        model.model.layers = layers


def count_weights(demand: Demand) -> int:
    """Bytes of all weights.

    int8 holds the layers' matrices in one byte each. Borrowed tables cost nothing here; a reduced LM head is made beside
    the whole one. Raises UserError as in `build_empty`.
    """
    checkpoint, wide = demand.checkpoint, demand.dtype.itemsize
    model = build_empty(demand)
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - tables
    total = (checkpoint.vocabulary or 0) * demand.config.hidden_size * wide
    for parameter in model.parameters():  # tied ones come once
        if not (checkpoint.borrows_tables and id(parameter) in tables):
            small = checkpoint.quantization == "int8" and id(parameter) in matrices
            total += parameter.numel() * (1 if small else wide)
    return total


def count_cache(config: PreTrainedConfig, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of keys and values for `tokens` positions."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * tokens * dtype.itemsize


def check_memory(name: str, demands: list[Demand], device: torch.device) -> None:
    """Raises UserError with both numbers when weights plus PLANNED_TOKENS of cache do not fit the free memory."""
    tokens = min(PLANNED_TOKENS, *(demand.config.max_position_embeddings for demand in demands))
    needed = sum(count_weights(demand) + count_cache(demand.config, demand.dtype, tokens) for demand in demands)
    free = free_bytes(device)
    if needed > free:
        raise UserError(
            f"The pair {name} needs {needed / GIB:.1f} GiB on {device} ({needed} bytes: weights and {tokens} "
            f"tokens of cache), but {free / GIB:.1f} GiB are free ({free} bytes): choose a smaller pair, a "
            "16-bit dtype, or model_pair.target.quantization=int8."
        )


def load_model(files: Files, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on the device, every weight from the checkpoint. Raises UserError when the files do not fill it."""
    if files.gguf is not None:
        return load_gguf(files, device, dtype)
    for path in weight_files(files):
        check_whole(path)
    extra = {"device_map": {"": device}} if device.type == "cuda" else {}
    int8 = files.checkpoint.quantization == "int8"
    if int8 and device.type == "cuda":
        extra["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
        )
    except UnpicklingError as error:
        raise UserError(
            f"{files.folder / 'pytorch_model.bin'} is a pickle that holds more than tensors, which could run code, so it is "
            "not read: fetch the checkpoint's safetensors files instead."
        ) from error
    except Exception as error:  # of safetensors, torch or transformers, each with its own
        reason = "tensors of other sizes" if "ignore_mismatched_sizes" in str(error) else first_line(error)
        raise UserError(
            f"The weights in {files.folder} do not fit their config.json ({reason}): fetch both again."
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"The weights in {files.folder} lack {len(report['missing_keys'])} tensors that config.json asks "
            f"for (first: {min(report['missing_keys'])}): fetch the checkpoint again."
        )
    if device.type == "cpu":
        detach_from_file(model)
        return quantise(model) if int8 else model
    return model


def load_gguf(files: Files, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model of a GGUF file on the device. Raises UserError where its tensors do not fill it."""
    if files.checkpoint.quantization and device.type == "cuda":
        raise UserError(
            f"The {files.role} {files.name} is a GGUF file: set model_pair.{files.role}.quantization=null on a GPU."
        )
    config = read_config(files)
    weights = read_weights(files.gguf, files.folder / INDEX, config, dtype)
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}
    if missing:
        raise UserError(f"{files.gguf} does not fill its own settings (first: {min(missing)}): give another file.")
    model.generation_config = GenerationConfig.from_pretrained(files.folder, trust_remote_code=False)
    return quantise(model) if files.checkpoint.quantization == "int8" else model.to(device)


def detach_from_file(model: nn.Module) -> None:
    """Memory of their own for the embedding and all vectors. Every other weight a compiled runtime lays out anew.

    Weights come as parts of a mapped file, which is let go once none of them is in use.
    """
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter is embedding or parameter.dim() == 1:
            mapped, parameter.data = parameter.data, parameter.data.clone()
            drop_pages(mapped)


def load_borrowing_draft(files: Files, config: PreTrainedConfig, target: nn.Module) -> nn.Module:
    """A draft from files without tables, with the target's own embedding and LM head modules, in the target's dtype.

    Raises UserError when its hidden size is not the target's, or tensors are missing, left over or of another shape.
    """
    if config.hidden_size != target.config.hidden_size:
        raise UserError(
            f"The draft in {files.folder} has hidden size {config.hidden_size} but borrows embeddings of size "
            f"{target.config.hidden_size}: use the target it was trained with."
        )
    path = files.folder / "model.safetensors"
    if not path.exists():
        raise UserError(
            f"The draft has no model.safetensors in {files.folder}: install gammatune again, or correct "
            "model_pair.draft.path."
        )
    check_whole(path)
    config = copy.deepcopy(config)
    # One row, so that no time goes into tables that are replaced
    config.vocab_size, config.pad_token_id, config.tie_word_embeddings = 1, None, False
    # Made in the target's dtype, not cast to it: a cast would round the RoPE frequencies too
    with torch.device(target.device):
        draft = AutoModelForCausalLM.from_config(config, dtype=target.dtype, attn_implementation="sdpa")
    weights = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    try:
        missing, left_over = draft.model.load_state_dict(weights, strict=False)
        odd = [name for name in (*missing, *left_over) if name != "embed_tokens.weight"]
        reason = f"{len(odd)} tensors, first: {odd[0]}" if odd else ""
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
    if reason:
        raise UserError(
            f"The draft weights in {files.folder} do not match their config.json ({reason}): copy both files from the same "
            "training run."
        )
    draft.set_input_embeddings(target.get_input_embeddings())
    draft.set_output_embeddings(target.get_output_embeddings())
    draft.config.vocab_size = target.config.vocab_size
    return quantise(draft) if files.checkpoint.quantization == "int8" else draft


def make_config(shape: Shape, **extra) -> PreTrainedConfig:
    """A transformers config of that shape, with ids 0, 1, 2 for begin, end and padding."""
    sizes = vars(shape) | {"head_dim": shape.head_dim or shape.hidden_size // shape.num_attention_heads}
    theta = sizes.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": theta}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return AutoConfig.for_model(**sizes, rope_parameters=rope, attn_implementation="sdpa", **ids, **extra)


def make_random_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The same weights every time, drawn on the device in `dtype`; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
