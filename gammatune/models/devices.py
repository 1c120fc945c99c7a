"""Where a pair computes, how precisely, and how much memory is free there."""

from pathlib import Path

import psutil
import torch

from gammatune.config import DTYPES, PairConfig, one_of
from gammatune.errors import UserError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GIB = 2**30


def choose_device(device: str) -> torch.device:
    """auto is the GPU where there is one, else the CPU. Raises UserError for a device that torch does not know or have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"The device {device} is not known: use cpu, cuda or cuda:N.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"The device {device} is not supported: use cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"The device {device} was asked for, but torch sees {torch.cuda.device_count()} CUDA GPUs here: "
            "use one that exists, or cpu."
        )
    return chosen


def choose_dtype(config: PairConfig, device: torch.device, dtype: str | None) -> torch.dtype:
    """The one asked for, else the config's for that device. Raises UserError for one that is not known."""
    name = dtype or (config.cpu_dtype if device.type == "cpu" else config.dtype)
    one_of("dtype", name, DTYPES)
    return TORCH_DTYPES[name]


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be taken on the device; on a CPU the smaller of the machine's and the container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, free_container_bytes())


def free_container_bytes(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control group's limit leaves, not counting page cache that can be dropped; infinite without a limit."""
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(statistics["inactive_file"])
    except (OSError, ValueError, KeyError):  # no control group, or "max": no limit
        return float("inf")
