"""The draft model: a few Llama layers between the target's frozen embeddings and frozen output head."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from .fast_llama import rope_tables, rotate


@dataclass
class Shape:
    """Architecture of the draft; ``sources`` names the target layer that initialises each draft layer."""

    sources: list[int] = field(default_factory=lambda: [0, 1, 2])
    intermediate: int = 1344
    hidden: int = 576
    heads: int = 9
    kv: int = 3
    dim: int = 64
    eps: float = 1e-5
    theta: float = 1e5


# Without fusion these three cost more CPU time than the matrix products.
fused_rotate = torch.compile(rotate, dynamic=True)


@torch.compile(dynamic=True)
def fused_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU-gated product of the two halves of ``gate_up`` (..., 2 I)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@torch.compile(dynamic=True)
def fused_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of bf16 ``x`` (..., H), computed in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).bfloat16() * weight


class Weights(nn.Module):
    """A bare weight, so that parameter names equal those of ``LlamaForCausalLM``."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(value.detach().float().clone())

    def cast(self) -> torch.Tensor:
        """The weight in bf16; gradients flow back to the fp32 master copy."""
        return self.weight.bfloat16()


def strongest_neurons(mlp, count: int) -> torch.Tensor:
    """Indices of the ``count`` MLP neurons with the largest product of input and output weight norms."""
    norms = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
    return norms.topk(count).indices.sort().values


class Layer(nn.Module):
    """One decoder layer in bf16 with fp32 master weights."""

    def __init__(self, source, shape: Shape):
        super().__init__()
        self.shape = shape
        keep = strongest_neurons(source.mlp, shape.intermediate)
        attention, mlp = source.self_attn, source.mlp
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.self_attn = nn.ModuleDict({name: Weights(getattr(attention, name).weight) for name in names})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": Weights(mlp.gate_proj.weight[keep]),
                "up_proj": Weights(mlp.up_proj.weight[keep]),
                "down_proj": Weights(mlp.down_proj.weight[:, keep]),
            }
        )
        self.input_layernorm = Weights(source.input_layernorm.weight)
        self.post_attention_layernorm = Weights(source.post_attention_layernorm.weight)

    def _norm(self, x: torch.Tensor, norm: Weights) -> torch.Tensor:
        return fused_norm(x, norm.cast(), self.shape.eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Map hidden states (B, S, H) to hidden states (B, S, H), causally."""
        heads, kv = self.shape.heads, self.shape.kv
        weight = torch.cat([self.self_attn[name].cast() for name in ("q_proj", "k_proj", "v_proj")])
        fused = F.linear(self._norm(x, self.input_layernorm), weight).unflatten(-1, (-1, self.shape.dim))
        fused = fused.transpose(1, 2)
        turned = fused_rotate(fused[:, : heads + kv], cos, sin)
        attended = F.scaled_dot_product_attention(
            turned[:, :heads], turned[:, heads:], fused[:, heads + kv :], is_causal=True, enable_gqa=True
        )
        x = x + F.linear(attended.transpose(1, 2).flatten(2), self.self_attn["o_proj"].cast())
        weight = torch.cat((self.mlp["gate_proj"].cast(), self.mlp["up_proj"].cast()))
        inner = fused_gate(F.linear(self._norm(x, self.post_attention_layernorm), weight))
        return x + F.linear(inner, self.mlp["down_proj"].cast())


class Draft(nn.Module):
    """Draft layers and final norm; the embedding (V, H) is a frozen buffer, shared with the target."""

    def __init__(self, target_path: str | Path, shape: Shape, device: str = "cpu"):
        super().__init__()
        target = AutoModelForCausalLM.from_pretrained(target_path, dtype=torch.float32)
        self.shape = shape
        self.layers = nn.ModuleList(Layer(target.model.layers[i], shape) for i in shape.sources)
        self.norm = Weights(target.model.norm.weight)
        self.register_buffer("embedding", target.model.embed_tokens.weight.detach().bfloat16(), persistent=False)
        cos, sin = rope_tables(shape.dim, shape.theta, torch.device("cpu"))
        self.register_buffer("cos", cos.bfloat16(), persistent=False)
        self.register_buffer("sin", sin.bfloat16(), persistent=False)
        self.to(device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Final normalised hidden states (B, S, H) in bf16 of right-padded ``ids`` (B, S)."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return fused_norm(x, self.norm.cast(), self.shape.eps)

    def load(self, folder: Path) -> Draft:
        """Replace the weights by those that :func:`export` wrote to ``folder``."""
        stored = load_file(folder / "model.safetensors")
        self.load_state_dict({name.removeprefix("model."): value.float() for name, value in stored.items()})
        return self


class SubsetCrossEntropy(torch.autograd.Function):
    """Cross-entropy to sparse targets over a vocabulary subset, in chunks that stay in cache.

    Computes the gradient in the forward pass, so the logits (N, W) never exist as a whole.
    """

    @staticmethod
    def forward(ctx, hidden, head, offset, places, shares):
        """``hidden`` (N, H), ``head`` (W, H), ``offset`` (W,), target ``places`` and ``shares`` (N, K)."""
        gradient, total = torch.empty_like(hidden), hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), 256):
            part = slice(start, start + 256)
            logits = F.linear(hidden[part], head).float().add_(offset)
            log_z = logits.logsumexp(-1, keepdim=True)
            mass = shares[part].sum(-1, keepdim=True)
            total += (mass * log_z).sum() - (shares[part] * logits.gather(1, places[part])).sum()
            logits.sub_(log_z).exp_().mul_(mass).scatter_add_(1, places[part], -shares[part])
            gradient[part] = logits.bfloat16() @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream.to(ctx.saved_tensors[0].dtype), None, None, None, None


@dataclass
class Head:
    """Which vocabulary rows take part in the training softmax.

    The ``frequent`` tokens and a batch's own targets always do; ``sampled`` random others stand for the
    rest, each with the log of its inverse sampling rate added, so the partition sum stays unbiased.
    """

    frequent: torch.Tensor
    sampled: int = 2048

    def loss(self, draft: Draft, hidden, top_ids, shares) -> torch.Tensor:
        """Summed cross-entropy of ``hidden`` (N, H) to ``top_ids`` (N, K) weighted by ``shares`` (N, K)."""
        size = len(draft.embedding)
        certain = torch.zeros(size, dtype=torch.bool, device=hidden.device)
        certain[self.frequent] = True
        certain[top_ids.flatten()] = True
        rest = (~certain).nonzero().squeeze(1)
        extra = rest[torch.randperm(len(rest), device=rest.device)[: self.sampled]]
        rows = torch.cat((certain.nonzero().squeeze(1), extra))
        offset = torch.zeros(len(rows), device=hidden.device)
        offset[len(rows) - len(extra) :] = torch.log(torch.tensor(len(rest) / max(1, len(extra))))
        place = torch.empty(size, dtype=torch.long, device=hidden.device)
        place[rows] = torch.arange(len(rows), device=hidden.device)
        return SubsetCrossEntropy.apply(hidden, draft.embedding[rows], offset, place[top_ids], shares)


def export(draft: Draft, folder: Path, temperature: float = 1.0) -> None:
    """Write ``model.safetensors`` (bf16, without embeddings) and ``config.json``, each atomically.

    Dividing the final norm weight by ``temperature`` divides all logits by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value.detach().cpu() for name, value in draft.named_parameters()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"] / temperature
    tensors = {name: value.bfloat16().contiguous() for name, value in tensors.items()}
    temporary = folder / "model.safetensors.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.rename(folder / "model.safetensors")
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(llama_config(draft.shape), indent=2) + "\n")
    temporary.rename(folder / "config.json")


def llama_config(shape: Shape) -> dict:
    """The draft's LlamaConfig as a dictionary."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": len(shape.sources),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv,
        "head_dim": shape.dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 8192,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "tie_word_embeddings": True,
        "vocab_size": 49152,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }
