"""Whether a pair fits, counted from its shapes before any weight is read."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from gammatune.config import Shape
from gammatune.errors import UserError

GIB = 2**30
PLANNED_TOKENS = 2048  # context that a run is assumed to fill when both caches are counted


@dataclass(frozen=True)
class Need:
    """One model's demand. shared_embeddings: its embedding and head belong to another model and cost nothing here.

    head: rows of a reduced output head, which is made beside the whole one (0: none).
    """

    shape: Shape
    dtype: torch.dtype
    quantization: str | None = None
    shared_embeddings: bool = False
    head: int = 0


def head_dim(shape: Shape) -> int:
    return shape.head_dim or shape.hidden_size // shape.num_attention_heads


def layer_parameters(shape: Shape) -> int:
    """Weights of one layer's matrices; the two norms are counted in `weight_bytes`."""
    attention = 2 * shape.hidden_size * head_dim(shape) * (shape.num_attention_heads + shape.num_key_value_heads)
    return attention + 3 * shape.hidden_size * shape.intermediate_size


def weight_bytes(need: Need) -> int:
    """Bytes of a Llama's weights. int8 holds the layers' matrices in one byte each, all else in `dtype`."""
    shape, wide = need.shape, need.dtype.itemsize
    matrices = shape.num_hidden_layers * layer_parameters(shape)
    norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    tables = 0 if need.shared_embeddings else (1 if shape.tie_word_embeddings else 2) * shape.vocab_size * shape.hidden_size
    tables += need.head * shape.hidden_size
    return matrices * (1 if need.quantization == "int8" else wide) + (norms + tables) * wide


def cache_bytes(need: Need, tokens: int) -> int:
    """Bytes of keys and values for `tokens` positions."""
    shape = need.shape
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_dim(shape) * tokens * need.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on a CPU the smaller of the machine's and the container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(free_machine_bytes(), free_container_bytes())


def free_machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def free_container_bytes(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control group's limit leaves, not counting page cache that can be dropped; infinite without a limit."""
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(statistics["inactive_file"])
    except (OSError, ValueError, KeyError):  # no control group, or "max": no limit
        return float("inf")


def require_memory(name: str, needs: list[Need], device: torch.device) -> None:
    """Raises UserError with both numbers when weights plus PLANNED_TOKENS of cache do not fit the free memory."""
    tokens = min(PLANNED_TOKENS, *(need.shape.max_position_embeddings for need in needs))
    needed = sum(weight_bytes(need) + cache_bytes(need, tokens) for need in needs)
    free = free_bytes(device)
    if needed > free:
        raise UserError(
            f"The pair {name} needs {needed / GIB:.1f} GiB on {device} ({needed} bytes: weights and {tokens} "
            f"tokens of cache), but {free / GIB:.1f} GiB are free ({free} bytes): choose a smaller pair, a "
            "16-bit dtype, or on a GPU model_pair.target.quantization=int8."
        )
