"""Attention in parts, where transformers' layers as a whole would compute or copy more than is needed."""

import torch
from torch.nn import functional as F


def split_heads(states: torch.Tensor, head_size: int) -> torch.Tensor:
    """[b, n, heads * head size] as [b, heads, n, head size]."""
    return states.unflatten(-1, (-1, head_size)).transpose(1, 2)


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """RoPE on states [b, heads, n, head size], the two halves of a head as pairs; cosines and sines [b, n, head size]."""
    first, second = states.chunk(2, dim=-1)
    return states * cosines[:, None] + torch.cat([-second, first], dim=-1) * sines[:, None]


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Attention's output [b, n, heads * head size]. queries [b, heads, n, d]; keys and values [b, kv heads, m, d];
    seen [b, n, m]: True where a query sees a key; each sees one at least.

    Queries that share keys are laid side by side as more positions of one head, so that no key is copied.
    """
    b, heads, n, _ = queries.shape
    shared = heads // keys.shape[1]
    grouped = queries.unflatten(1, (-1, shared)).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen.repeat(1, shared, 1)[:, None])
    return mixed.unflatten(2, (shared, n)).flatten(1, 2).transpose(1, 2).reshape(b, n, -1)
