"""A lean Llama forward pass for batch labelling and greedy or sampled generation with the target model.

Shapes use ``B`` rows, ``S`` positions, ``H`` hidden size, ``KV`` key/value heads, ``G`` query heads per
key/value head, ``D`` head dimension and ``T`` cache columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

MAX_POSITIONS = 4096
TOP_K = 8


def rope_tables(head_dim: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp32 cosine and sine tables of shape (MAX_POSITIONS, head_dim)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.outer(torch.arange(MAX_POSITIONS, device=device).float(), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary embeddings to ``x`` (..., D) with broadcastable ``cos`` and ``sin``."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def top_k(logits: torch.Tensor, k: int = TOP_K, chunk: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact top-k of ``logits`` (N, V) in two stages, much faster than one sort over a large vocabulary.

    The k largest values lie in the k chunks with the largest maxima, so only those chunks are ranked.
    """
    blocks = logits.view(logits.shape[0], -1, chunk)
    best = blocks.amax(-1).topk(k, dim=-1).indices
    candidates = blocks.gather(1, best[..., None].expand(-1, -1, chunk)).flatten(1)
    values, where = candidates.topk(k, dim=-1)
    return values, best.gather(1, where // chunk) * chunk + where % chunk


class FastLlama:
    """Inference-only Llama with fused projections and a preallocated cache."""

    def __init__(self, path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16):
        source = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
        config = source.config
        self.device, self.dtype, self.eps = torch.device(device), dtype, config.rms_norm_eps
        self.kv, self.dim = config.num_key_value_heads, config.head_dim
        self.group = config.num_attention_heads // self.kv
        self.embedding = source.model.embed_tokens.weight.detach()
        self.norm = source.model.norm.weight.detach()
        self.layers = [self._fuse(layer) for layer in source.model.layers]
        theta = config.rope_parameters["rope_theta"]
        self.cos, self.sin = rope_tables(self.dim, theta, self.device)

    @staticmethod
    def _fuse(layer) -> dict[str, torch.Tensor]:
        attention, mlp = layer.self_attn, layer.mlp
        return {
            "norm1": layer.input_layernorm.weight.detach(),
            "qkv": torch.cat([p.weight.detach() for p in (attention.q_proj, attention.k_proj, attention.v_proj)]),
            "out": attention.o_proj.weight.detach(),
            "norm2": layer.post_attention_layernorm.weight.detach(),
            "gate_up": torch.cat((mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach())),
            "down": mlp.down_proj.weight.detach(),
        }

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    def _heads(self, layer: dict, x: torch.Tensor, positions: torch.Tensor):
        """Return rotated q (B, KV*G, S, D), rotated k and v (B, KV, S, D) for ``x`` (B, S, H)."""
        rows, steps, _ = x.shape
        fused = F.linear(self._norm(x, layer["norm1"]), layer["qkv"]).view(rows, steps, -1, self.dim)
        fused = fused.transpose(1, 2)
        cos, sin = (table[positions].to(self.dtype).unsqueeze(-3) for table in (self.cos, self.sin))
        heads = self.kv * self.group
        turned = rotate(fused[:, : heads + self.kv], cos, sin)
        return turned[:, :heads], turned[:, heads:], fused[:, heads + self.kv :]

    def _finish(self, layer: dict, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add the attention output (B, S, H) and the gated MLP to the residual stream ``x``."""
        x = x + F.linear(attended, layer["out"])
        gate, up = F.linear(self._norm(x, layer["norm2"]), layer["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer["down"])

    def prefill(self, ids: torch.Tensor, cache: torch.Tensor | None = None) -> torch.Tensor:
        """Return final hidden states (B, S, H) of right-padded ``ids`` (B, S).

        Causal attention never looks right, so right padding needs no mask. ``cache`` of shape
        (layers, 2, B, KV, S, D) receives keys and values when given.
        """
        x = F.embedding(ids, self.embedding)
        positions = torch.arange(ids.shape[1], device=self.device)
        for index, layer in enumerate(self.layers):
            q, k, v = self._heads(layer, x, positions)
            if cache is not None:
                cache[index, 0], cache[index, 1] = k, v
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = self._finish(layer, x, attended.transpose(1, 2).flatten(2))
        return self._norm(x, self.norm)

    def step(self, tokens, positions, cache, column: int, bias) -> torch.Tensor:
        """Decode one token per row and return hidden states (B, H).

        ``tokens`` and ``positions`` are (B,), ``cache`` (layers, 2, B, KV, T, D) is left padded so that every
        row writes the same ``column``; ``bias`` (B, 1, 1, T) is -inf on padding.
        """
        x = F.embedding(tokens, self.embedding).unsqueeze(1)
        for index, layer in enumerate(self.layers):
            q, k, v = self._heads(layer, x, positions[:, None])
            cache[index, 0, :, :, column] = k[:, :, 0]
            cache[index, 1, :, :, column] = v[:, :, 0]
            keys, values = cache[index, 0, :, :, : column + 1], cache[index, 1, :, :, : column + 1]
            # The G query heads of one key head act as G query rows, which avoids repeating the cache.
            grouped = q.reshape(len(tokens), self.kv, self.group, self.dim)
            attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias[..., : column + 1])
            x = self._finish(layer, x, attended.reshape(len(tokens), 1, -1))
        return self._norm(x, self.norm).squeeze(1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Project hidden states (N, H) onto the vocabulary: (N, V)."""
        return F.linear(hidden, self.embedding)

    def label(self, hidden: torch.Tensor, block: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Return top-k ids (N, K) int32 and full-softmax probabilities (N, K) fp16 for ``hidden`` (N, H)."""
        ids, probabilities = [], []
        for part in hidden.split(block):
            logits = self.logits(part)
            values, indices = top_k(logits)
            log_z = logits.float().logsumexp(-1, keepdim=True)
            ids.append(indices.int())
            probabilities.append((values.float() - log_z).exp().half())
        return torch.cat(ids), torch.cat(probabilities)
