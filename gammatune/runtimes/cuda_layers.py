"""The pieces of a Llama's forward pass that CUDA graphs are recorded from: functions of tensors alone.

Nothing here depends on a number that the host knows but for shapes, so what was recorded once serves every later position.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch._dynamo import mark_dynamic
from torch.nn import functional as F
from transformers import LlamaForCausalLM


class Sizes(NamedTuple):
    heads: int
    kv_heads: int
    size: int
    eps: float


class Layer(NamedTuple):
    """One decoder layer's weights and its part of the cache: keys and values [kv heads, room, head size]."""

    norm_in: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    norm_out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def why_not_graphed(model: nn.Module) -> str:
    """Why this model cannot be run here, for a warning; empty where it can."""
    if not isinstance(model, LlamaForCausalLM):
        return f"{type(model).__name__} is no Llama"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or model.device.type != "cuda":
        return f"its weights are on {', '.join(sorted(map(str, devices)))}, not on one CUDA device"
    return why_not_laid_out(model)


def why_not_laid_out(model: LlamaForCausalLM) -> str:
    """What in the model's layers has no form here, whatever the device; empty where nothing."""
    attention = model.model.layers[0].self_attn
    if type(attention.q_proj) is not nn.Linear or not attention.q_proj.weight.is_floating_point():
        return "its layers are quantised"
    if model.config.attention_bias or model.config.mlp_bias or model.config.hidden_act != "silu":
        return "its layers have biases or another activation"
    rope = model.model.rotary_emb.rope_type
    return f"its {rope} rotary embedding depends on the length" if rope in ("dynamic", "longrope") else ""


def fuse(*linears: nn.Linear) -> torch.Tensor:
    """Their weights as one tensor [sum of out, in], of which the linears hold views afterwards: nothing is kept twice."""
    weights = [linear.weight for linear in linears]
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    places = [weight.data_ptr() for weight in weights]
    ends = [place + weight.nbytes for place, weight in zip(places, weights, strict=True)]
    if len({weight.untyped_storage().data_ptr() for weight in weights}) == 1 and ends[:-1] == places[1:]:
        return weights[0].data.as_strided((rows, width), (width, 1))
    fused = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, fused.split([weight.shape[0] for weight in weights]), strict=True):
        weight.data = part
    return fused


def lay_out(layer: nn.Module) -> Layer:
    """Of a transformers layer, as yet without a cache."""
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        norm_in=layer.input_layernorm.weight.data,
        qkv=fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        out=attention.o_proj.weight.data,
        norm_out=layer.post_attention_layernorm.weight.data,
        gate_up=fuse(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight.data,
        keys=torch.empty(0),
        values=torch.empty(0),
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [heads, n, size] by cos and sin [n, size]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def start_layer(x: torch.Tensor, layer: Layer, sizes: Sizes, rope: tuple, positions: torch.Tensor) -> torch.Tensor:
    """x [n, hidden] to queries [heads, n, size]; keys and values go into the cache at `positions` [n]."""
    heads, both, n = sizes.heads, sizes.heads + sizes.kv_heads, x.shape[0]
    normed = F.rms_norm(x, x.shape[-1:], layer.norm_in, sizes.eps)
    mixed = F.linear(normed, layer.qkv).view(n, both + sizes.kv_heads, sizes.size).transpose(0, 1)
    turned = rotate(mixed[:both], *rope)
    layer.keys.index_copy_(1, positions, turned[heads:])
    layer.values.index_copy_(1, positions, mixed[both:])
    return turned[:heads]


def finish_layer(x: torch.Tensor, seen: torch.Tensor, layer: Layer, sizes: Sizes) -> torch.Tensor:
    """x [n, hidden] and what its attention found [heads, n, size] to the layer's output [n, hidden]."""
    x = x + F.linear(seen.transpose(0, 1).reshape(x.shape[0], -1), layer.out)
    gate, up = F.linear(F.rms_norm(x, x.shape[-1:], layer.norm_out, sizes.eps), layer.gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, layer.down)


def cross_layers(x: torch.Tensor, seen: torch.Tensor, layers: tuple, sizes: Sizes, place: tuple) -> tuple:
    """The end of one layer and the start of the next in one piece, so that the compiler may join the two."""
    x = finish_layer(x, seen, layers[0], sizes)
    return x, start_layer(x, layers[1], sizes, *place)


PLAIN = (start_layer, cross_layers, finish_layer)


def attend_within(reach: int, mask: torch.Tensor, queries: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Attention over the first `reach` positions. queries, result: [heads, n, size]; mask [rows, reach], added.

    The query heads of one key head become rows of one head: so no key is copied, and kernels without grouping will do.
    """
    grouped = queries.reshape(layer.keys.shape[0], -1, queries.shape[-1])  # [kv heads, rows, size]
    seen = F.scaled_dot_product_attention(
        grouped[None], layer.keys[None, :, :reach], layer.values[None, :, :reach], attn_mask=mask
    )
    return seen[0].reshape(queries.shape)


def attend_from_start(queries: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Causal attention where the cache was empty before. queries, result: [heads, n, size]."""
    n = queries.shape[1]
    keys, values = layer.keys[None, :, :n], layer.values[None, :, :n]
    return F.scaled_dot_product_attention(queries[None], keys, values, is_causal=True, enable_gqa=True)[0]


def free_count(*tensors: torch.Tensor, dim: int = 0) -> None:
    """Tell the compiler that this dimension, the count of tokens, varies; a single token is a case of its own."""
    for tensor in tensors:
        if tensor.shape[dim] > 1:
            mark_dynamic(tensor, dim)
