"""What the compiled runtimes share: parts of a Llama or Qwen2, what of it they refuse, a KV cache that stays in place."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from gammatune.models.int8 import Int8Linear

# RoPE types whose angles do not depend on how long the text is, so that one table of them serves every forward
FIXED_ROPES = ("default", "linear", "llama3", "yarn")


class Dimensions(NamedTuple):
    """Sizes of a model that every layer shares."""

    hidden: int
    intermediate: int  # width between the SwiGLU's projections
    heads: int
    kv_heads: int
    head_size: int
    eps: float  # of the RMS norms


@dataclass(frozen=True)
class LayerParts:
    """One decoder layer of transformers, by the role of its parts. A linear's `bias` is None where it has none."""

    attention_norm: torch.Tensor  # RMS norm before the attention [hidden]
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    output: nn.Linear  # from the attention's heads to hidden
    mlp_norm: torch.Tensor  # RMS norm before the SwiGLU [hidden]
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        return self.q, self.k, self.v, self.output, self.gate, self.up, self.down


def refusal(model: nn.Module) -> str | None:
    """Why neither compiled runtime can run this model, for a warning; None where both have a form for its layers."""
    if not isinstance(model, LlamaForCausalLM | Qwen2ForCausalLM):
        return f"{type(model).__name__} is no Llama and no Qwen2"
    layers = [layer_parts(layer) for layer in model.model.layers]
    linears = [linear for layer in layers for linear in layer.linears]
    if any(type(linear) is not nn.Linear and type(linear) is not Int8Linear for linear in linears):
        return "its layers are quantised in a form of their own"
    if any(linear.bias is not None for layer in layers for linear in layer.linears[3:]):
        return "its layers have biases other than those of queries, keys and values"
    if set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}:
        return "some of its layers see a part of the text only"
    if model.config.hidden_act != "silu":
        return f"its activation is {model.config.hidden_act}, not silu"
    rope = model.model.rotary_emb.rope_type
    return None if rope in FIXED_ROPES else f"its {rope} RoPE may depend on the text's length"


def layer_parts(layer: nn.Module) -> LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerParts(
        attention_norm=layer.input_layernorm.weight.data,
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        output=attention.o_proj,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
    )


def join_biases(parts: LayerParts) -> torch.Tensor | None:
    """Of queries, keys and values, in this order [heads + 2 kv heads, times head size]; None where there are none."""
    linears = parts.q, parts.k, parts.v
    if all(linear.bias is None for linear in linears):
        return None
    rows = [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.data for linear in linears]
    return torch.cat(rows)


def dimensions(model: nn.Module) -> Dimensions:
    config = model.config
    return Dimensions(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=model.model.layers[0].self_attn.head_dim,
        eps=config.rms_norm_eps,
    )


def rope_tables(model: nn.Module, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, head size] of RoPE, in the model's dtype as its own layers get them."""
    like = model.model.embed_tokens.weight[:1, None]
    cosines, sines = model.model.rotary_emb(like, torch.arange(positions, device=like.device)[None])
    return cosines[0], sines[0]


class FixedCache:
    """A KV cache that stays in place: of `positions` positions, `length` hold tokens, and the next forward overwrites what
    lies after those. vocab_size: columns of the logits, see `Model` (gammatune.runtimes.base)."""

    takes_masks = False
    records_graphs = False
    features: torch.Tensor | None = None

    def __init__(self, vocab_size: int, positions: int):
        self.vocab_size = vocab_size
        self.positions = positions
        self.length = 0

    def reset(self) -> None:
        self.length = 0

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens; no effect where the cache holds no more than that."""
        self.length = min(self.length, length)

    def length_after(self, tokens: int) -> int:
        """Length with that many more tokens. Raises ValueError when the cache cannot hold them."""
        after = self.length + tokens
        if after > self.positions:
            raise ValueError(f"{after} tokens do not fit a cache of {self.positions} positions.")
        return after

    def warm(self, counts, context: int, keep: int | None = None) -> None:
        """Nothing to prepare."""
