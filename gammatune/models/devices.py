"""Where a pair computes and how precisely."""

import torch

from gammatune.config import DTYPES, PairConfig, one_of
from gammatune.errors import UserError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    name = dtype or (config.cpu_dtype if device.type == "cpu" else config.dtype)
    one_of("dtype", name, DTYPES)
    return TORCH_DTYPES[name]
