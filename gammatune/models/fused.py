"""A Llama's forward pass on a CPU with fewer and faster pieces than transformers' own, over a cache that never moves.

Query, key and value share one product, gate and up another; weights are laid out beforehand as oneDNN reads them fastest.
Numbers are those of the eager pass but for the order of sums.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

# Up to this many rows the plain layout is faster; measured on two cores with AVX-512 and AMX
PLAIN_ROWS = {torch.float32: 2, torch.bfloat16: 0}
PACKED_ROWS = 8


def why_not_fused(model: nn.Module) -> str:
    """Why this model cannot be run here, for a warning; empty where it can."""
    if not isinstance(model, LlamaForCausalLM):
        return f"{type(model).__name__} is no Llama"
    weight = model.model.layers[0].self_attn.q_proj.weight
    if weight.device.type != "cpu" or weight.dtype not in PLAIN_ROWS:
        return f"weights in {str(weight.dtype).split('.')[-1]} on {weight.device.type} have no fused form"
    if model.config.attention_bias or model.config.mlp_bias or model.config.hidden_act != "silu":
        return "its layers have biases or another activation"
    return "" if torch.backends.mkldnn.is_available() else "this build of torch has no oneDNN"


class PackedLinear:
    """x [n, in] to x W^T [n, out], W in the layout that is fastest for n rows."""

    def __init__(self, *weights: torch.Tensor):
        weight = torch.cat(weights).contiguous() if len(weights) > 1 else weights[0]
        self.few = PLAIN_ROWS[weight.dtype]
        self.plain = weight if self.few else None
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] <= self.few:
            return F.linear(x, self.plain)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class FusedLayer:
    """One decoder layer and its part of the cache: keys and values [kv heads, positions, head size]."""

    def __init__(self, layer: nn.Module, config, positions: int):
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads, self.size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        self.eps = config.rms_norm_eps
        self.norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.qkv = PackedLinear(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self.out = PackedLinear(attention.o_proj.weight)
        self.gate_up = PackedLinear(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.down = PackedLinear(mlp.down_proj.weight)
        shape = (self.kv_heads, positions, self.size)
        self.keys, self.values = (torch.zeros(shape, dtype=self.norms[0].dtype) for _ in range(2))

    def __call__(self, x: torch.Tensor, start: int, rope: tuple, mask: torch.Tensor | None) -> torch.Tensor:
        """x [n, hidden], from position start on; rope: cos and sin [n, head size]; mask [n, start + n] of what is seen."""
        x = x + self.attend(F.rms_norm(x, x.shape[-1:], self.norms[0], self.eps), start, rope, mask)
        gate, up = self.gate_up(F.rms_norm(x, x.shape[-1:], self.norms[1], self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def attend(self, x: torch.Tensor, start: int, rope: tuple, mask: torch.Tensor | None) -> torch.Tensor:
        n, end = x.shape[0], start + x.shape[0]
        mixed = self.qkv(x).view(n, self.heads + 2 * self.kv_heads, self.size).transpose(0, 1)  # [heads + 2 kv, n, size]
        turned = rotate(mixed[: self.heads + self.kv_heads], *rope)
        self.keys[:, start:end] = turned[self.heads :]
        self.values[:, start:end] = mixed[self.heads + self.kv_heads :]
        seen = F.scaled_dot_product_attention(
            turned[None, : self.heads],
            self.keys[None, :, :end],
            self.values[None, :, :end],
            attn_mask=mask,
            enable_gqa=self.heads != self.kv_heads,
        )  # [1, heads, n, size]
        return self.out(seen[0].transpose(0, 1).reshape(n, -1))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [heads, n, size]; sin comes with its first half negated."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class FusedModel:
    """What the decoding loop knows of a model (see runtime.CachedModel), run by the layers above. Batch size 1."""

    def __init__(self, model: nn.Module, vocab_size: int, positions: int):
        self.model = model
        self.vocab_size = vocab_size
        self.embedding = model.model.embed_tokens.weight
        self.layers = [FusedLayer(layer, model.config, positions) for layer in model.model.layers]
        self.norm = model.model.norm.weight
        self.eps = model.config.rms_norm_eps
        self.head = PackedLinear(model.lm_head.weight)
        cos, sin = model.model.rotary_emb(self.embedding[:1, None], torch.arange(positions)[None])
        half = cos.shape[-1] // 2
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)  # [positions, size]
        self.reset()

    def reset(self) -> None:
        self.length = 0

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32."""
        start, end = self.length, self.length + tokens.shape[0]
        rope = self.cos[start:end], self.sin[start:end]
        x, mask = self.embedding[tokens], causal_mask(start, end)
        for layer in self.layers:
            x = layer(x, start, rope, mask)
        self.length = end
        x = F.rms_norm(x[-keep:], x.shape[-1:], self.norm, self.eps)
        return self.head(x)[:, : self.vocab_size].float()

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens; no effect where the cache holds no more than that."""
        self.length = min(self.length, length)


def causal_mask(start: int, end: int) -> torch.Tensor | None:
    """[n, end], True where position start + i may look; None for a single new position, which sees everything."""
    if end - start == 1:
        return None
    return torch.arange(end)[None] <= torch.arange(start, end)[:, None]
