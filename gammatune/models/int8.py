"""Weights held in one byte: each row of a matrix has a scale, w = scale * q with q from -127 to 127."""

import torch
from torch import nn
from torch.nn import functional as F

from gammatune.models.pages import drop_pages, trim_heap

ROWS = 4096  # quantised at a time, so that little memory is needed beside the matrix


class Int8Linear(nn.Linear):
    """A linear layer with weights q [out, in] in int8 and scales [out] in fp32; its bias stays as it is.

    Every q is a bf16 number too, so a forward in bf16 loses nothing of the weights; fp16 could not hold the sums.
    """

    def __init__(self, q: torch.Tensor, scales: torch.Tensor, bias: nn.Parameter | None = None):
        super().__init__(q.shape[1], q.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(q, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
        product = (F.linear(x.to(dtype), self.weight.to(dtype)) * self.scales).to(x.dtype)
        return product if self.bias is None else product + self.bias

    def cut(self, rows: torch.Tensor) -> "Int8Linear":
        """A layer of these rows [N] alone."""
        return Int8Linear(self.weight.data[rows], self.scales[rows])


def quantise_linear(linear: nn.Linear) -> Int8Linear:
    """To the nearest q of a row whose largest weight is 127 scales."""
    q, scales = torch.empty(linear.weight.shape, dtype=torch.int8), torch.empty(linear.out_features)
    for weight, some_q, some_scales in zip(*(tensor.split(ROWS) for tensor in (linear.weight.data, q, scales)), strict=True):
        wide = weight.float()
        some_scales.copy_(wide.abs().amax(dim=1) / 127)
        some_q.copy_((wide / some_scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round())
        drop_pages(weight)
    return Int8Linear(q, scales, linear.bias)


def quantise(model: nn.Module) -> nn.Module:
    """The model with all matrices of its layers and its LM head in int8; the embedding stays, even where it was the head.

    Modules are replaced and not changed, so a borrowed LM head stays as it is to its owner.
    """
    for module in model.model.layers.modules():
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, quantise_linear(child))
                trim_heap()
    if type(model.get_output_embeddings()) is nn.Linear:
        model.set_output_embeddings(quantise_linear(model.get_output_embeddings()))
        model.config.tie_word_embeddings = False
    return model
