"""What is said where a model's logits are no numbers: nothing can be drawn from them, and argmax would draw all the same."""

import torch

from gammatune.errors import UserError

FP16_LARGEST = 65504  # the largest finite number of fp16; bf16 and fp32 go to 3.4e38


class NonFiniteError(UserError):
    """A distribution that holds NaN, infinity, or no token at all. It ends the arm that met it, not the run."""


def nonfinite(role: str, position: int, dtype: torch.dtype) -> NonFiniteError:
    """role: "target" or "draft". position: token of the answer that was to be drawn, from 0. dtype: of the weights."""
    if dtype is torch.float16:
        cause = f"fp16 ends at {FP16_LARGEST:,} and this model leaves that range, so use bf16 or fp32 (runtime.dtype=bf16)"
    else:
        cause = f"its weights are damaged or do not suit {name_dtype(dtype)}: fetch its checkpoint again, or choose another"
    return NonFiniteError(
        f"The {role}'s logits ({name_dtype(dtype)}) are NaN or infinite at position {position} of the answer; {cause}."
    )


def name_dtype(dtype: torch.dtype) -> str:
    """fp16, bf16 or fp32, as configs write it."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
