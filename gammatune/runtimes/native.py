"""A Llama's forward pass on a CPU by the C++ step in llama_step.cpp, over a cache that never moves.

Weights are copied once into the order in which the step reads them. Sums run in another order than transformers' own and
stay in fp32 where transformers rounds in between, so logits agree with the eager pass to rounding.
"""

import ctypes
from functools import partial

import torch
from torch import nn
from transformers import LlamaForCausalLM

from gammatune.runtimes.fixed_cache import FixedCache
from gammatune.runtimes.native_library import NoLibraryError, load_library

PANEL, TILE, LANES, BLOCK = 16, 32, 16, 6  # as in llama_step.cpp: PANEL, TILE, LANES, MOST
CHUNK = 256  # tokens that one call takes; a longer prompt is fed in pieces
FIRST_POSITIONS = 1024
FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # their angles do not depend on how long the text is

Pointer, Count = ctypes.c_void_p, ctypes.c_int64


def fields(kind: type, names: str) -> list:
    return [(name, kind) for name in names.split()]


class LayerPointers(ctypes.Structure):
    _fields_ = fields(Pointer, "qkv out gate_up down norm_in norm_mid keys values")


class ModelPointers(ctypes.Structure):
    _fields_ = [
        *fields(Pointer, "layers embedding head norm cosines sines"),
        *fields(Count, "layer_count hidden inner heads kv_heads size rows positions"),
        ("eps", ctypes.c_float),
    ]


class WorkPointers(ctypes.Structure):
    _fields_ = [*fields(Pointer, "x mixed wide scores seen gated normed packed"), ("packed_words", Count)]


def why_not_native(model: nn.Module) -> str:
    """Why this model cannot be run here, for a warning; empty where it can."""
    if not isinstance(model, LlamaForCausalLM):
        return f"{type(model).__name__} is no Llama"
    config, weight = model.config, model.model.layers[0].self_attn.q_proj.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weights in {str(weight.dtype).split('.')[-1]} on {weight.device.type} have no C++ step"
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return "its layers have biases or another activation"
    if config.rope_parameters["rope_type"] not in FIXED_ROPES:
        return f"its positions are turned by a rule of their own ({config.rope_parameters['rope_type']})"
    size, widths = size_of(model), (config.hidden_size, config.intermediate_size)
    if size % LANES or any(width % TILE for width in (*widths, size * config.num_attention_heads)):
        return "its widths are no multiples of 32 or its heads no multiples of 16"
    try:
        load_library()
    except NoLibraryError as error:
        return str(error)
    return ""


def size_of(model: LlamaForCausalLM) -> int:
    """Numbers per attention head."""
    return model.model.layers[0].self_attn.head_dim


class NativeModel(FixedCache):
    """What the decoding loop knows of a model (see runtime.CachedModel), run by the C++ step. Batch size 1.

    context: positions that may be needed at most; the caches start smaller and double. Threads: torch's number of now.
    """

    def __init__(self, model: LlamaForCausalLM, vocab_size: int, context: int, ids: torch.Tensor | None = None):
        config = model.config
        super().__init__(vocab_size, ids)
        self.model = model
        self.context = round_up(context, TILE)
        self.threads = torch.get_num_threads()
        self.step = getattr(load_library(), f"step_{str(model.dtype).split('.')[-1]}")
        self.step.argtypes = Pointer, Pointer, Pointer, Count, Count, Count, Pointer, ctypes.c_int
        self.weights = [lay_out(layer) for layer in model.model.layers]
        self.head = lay_panels(pad_rows(model.lm_head.weight[: self.vocab_size]))
        self.norm = model.model.norm.weight.float()
        self.heads = config.num_attention_heads, config.num_key_value_heads
        self.caches = [[torch.zeros(0)] * 2 for _ in self.weights]
        self.capacity = 0
        self.grow(FIRST_POSITIONS)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32."""
        self.grow(self.length + tokens.shape[0])
        logits = torch.empty(keep, round_up(self.vocab_size, PANEL))
        unkept = tokens.shape[0] - keep
        for chunk in tokens.split(CHUNK):
            n = chunk.shape[0]
            kept = min(n, max(0, n - unkept))
            where = logits[logits.shape[0] - keep :]
            self.step(self.pointers, self.work, chunk.data_ptr(), n, self.length, kept, where.data_ptr(), self.threads)
            unkept, keep = unkept - (n - kept), keep - kept
            self.length += n
        return logits[:, : self.vocab_size]

    def grow(self, positions: int) -> None:
        """Make room for that many positions, at least twice the former ones, and hand all addresses to the C++ step."""
        if positions <= self.capacity:
            return
        before = self.capacity
        self.capacity = min(round_up(max(positions, 2 * before), TILE), self.context)
        kv_heads, size, dtype = self.heads[1], size_of(self.model), self.model.dtype
        for pair in self.caches:
            old, pair[:] = list(pair), [torch.zeros(kv_heads, self.capacity, size, dtype=dtype) for _ in range(2)]
            if before:
                for new, held in zip(pair, old, strict=True):  # keys lie in tiles along the positions: the same copy
                    new.view(kv_heads, -1)[:, : held[0].numel()] = held.view(kv_heads, -1)
        self.angles = make_angles(self.model, self.capacity)
        self.pointers = ctypes.byref(self.describe_model())
        self.work = ctypes.byref(self.describe_work())

    def describe_model(self) -> ModelPointers:
        config = self.model.config
        layers = [
            LayerPointers(*(tensor.data_ptr() for tensor in (*weights, *caches)))
            for weights, caches in zip(self.weights, self.caches, strict=True)
        ]
        self.layers = (LayerPointers * len(layers))(*layers)
        tensors = self.model.model.embed_tokens.weight, self.head, self.norm, *self.angles
        sizes = len(layers), config.hidden_size, config.intermediate_size, *self.heads, size_of(self.model)
        addresses = ctypes.addressof(self.layers), *(tensor.data_ptr() for tensor in tensors)
        return ModelPointers(*addresses, *sizes, round_up(self.vocab_size, PANEL), self.capacity, config.rms_norm_eps)

    def describe_work(self) -> WorkPointers:
        """Room for what lies between products, for CHUNK tokens; the last three and `scores` are one per thread."""
        config, size = self.model.config, size_of(self.model)
        (heads, kv_heads), hidden, inner = self.heads, config.hidden_size, config.intermediate_size
        plain, typed = torch.empty, partial(torch.empty, dtype=self.model.dtype)
        widest = max(hidden, inner, heads * size)
        self.buffers = [
            plain(CHUNK, hidden),
            plain(CHUNK, (heads + 2 * kv_heads) * size),
            plain(CHUNK, 2 * inner),
            plain(self.threads, BLOCK, self.capacity),
            typed(CHUNK, heads * size),
            typed(CHUNK, inner),
            typed(self.threads, CHUNK, hidden),
            plain(self.threads, CHUNK + PANEL, widest // 2),
        ]
        return WorkPointers(*(buffer.data_ptr() for buffer in self.buffers), self.buffers[-1][0].numel())


def lay_out(layer: nn.Module) -> list[torch.Tensor]:
    """A layer's weights in the order of LayerPointers."""
    attention, mlp = layer.self_attn, layer.mlp
    products = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    panels = [lay_panels(torch.cat([linear.weight for linear in linears])) for linears in products]
    return [*panels, layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()]


def lay_panels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] to [out / 16, lines of 64 bytes, 16, numbers in a line]: 16 rows side by side, read front to back."""
    rows, width = weight.shape
    line = 64 // weight.element_size()
    return weight.view(rows // PANEL, PANEL, width // line, line).transpose(1, 2).contiguous()


def pad_rows(weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def make_angles(model: LlamaForCausalLM, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, size] of the rotary embedding, the sines' first half negated."""
    like = model.model.embed_tokens.weight[:1, None]
    cosines, sines = (part[0].float() for part in model.model.rotary_emb(like, torch.arange(positions)[None]))
    half = sines.shape[-1] // 2
    return cosines.contiguous(), torch.cat([-sines[:, :half], sines[:, half:]], dim=-1)
