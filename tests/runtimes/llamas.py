"""Small models for both compiled runtimes, and the comparison with transformers' own forward."""

import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from gammatune.config import Shape
from gammatune.models.load import make_config
from gammatune.models.tiny import TinySettings, build_tiny_models, draw_weights
from gammatune.runtimes.eager import EagerModel

VOCAB = 40


def llama(kv_heads: int = 2, tied: bool = False, context: int = 512, seed: int = 3) -> LlamaForCausalLM:
    shape = Shape(64, 128, 2, 4, kv_heads, VOCAB, context, tie_word_embeddings=tied)
    return build_tiny_models(shape, shape, TinySettings(seed=seed))["target"].eval().requires_grad_(False)


def odd_llama(rope_type: str = "default", **extra) -> LlamaForCausalLM:
    """A Llama with something in its config that is not usual."""
    config = make_config(Shape(64, 128, 1, 4, 2, VOCAB, 512), **extra)
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8} if rope_type == "longrope" else {}
    if rope_type == "llama3":
        factors = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0, **factors}
    if rope_type in ("llama3", "yarn", "longrope"):
        config.rope_parameters["original_max_position_embeddings"] = 256
    return LlamaForCausalLM(config).eval()


def qwen2(head_size: int = 64, **extra) -> Qwen2ForCausalLM:
    """Six query heads over two; biases on queries, keys and values as large as what they are added to."""
    shape = Shape(64, 128, 2, 6, 2, VOCAB, 512, head_dim=head_size, model_type="qwen2")
    model = Qwen2ForCausalLM(make_config(shape, **extra))
    draw_weights(model, torch.Generator().manual_seed(5))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias, generator=torch.Generator().manual_seed(len(name)))
    return model.eval().requires_grad_(False)


def tokens_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def compare(compiled, eager: EagerModel, tokens: torch.Tensor, keep: int, close: float = 1e-4) -> torch.Tensor:
    got, expected = compiled.forward(tokens, keep), eager.forward(tokens, keep)
    assert got.shape == expected.shape and got.dtype == torch.float32 and compiled.length == eager.length
    torch.testing.assert_close(got, expected, rtol=close, atol=close)
    return got
