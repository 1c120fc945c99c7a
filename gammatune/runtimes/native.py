"""A Llama's or Qwen2's forward pass on a CPU by llama_step.cpp, over a KV cache that moves only when it doubles.

Weights are copied once into the order in which the C++ step reads them; `release` gives up the others. Sums run in another
order than transformers' own and stay in fp32 where transformers rounds in between, so logits agree with the eager pass to
rounding. A token gets the same bits whether it is fed alone or with one other, in fp32 and by weights in int8 however many
are fed, and for any number of threads.
"""

import ctypes
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gammatune.models.int8 import Int8Linear
from gammatune.models.pages import drop_pages, trim_heap
from gammatune.runtimes import layout
from gammatune.runtimes.layout import FixedCache, dimensions, join_biases, layer_parts, rope_tables
from gammatune.runtimes.native_library import NoLibraryError, load_library

PANEL, TILE, LANES, TOKEN_GROUP = 16, 32, 16, 6  # as in llama_step.cpp
CHUNK = 256  # tokens that one call takes; a longer prompt is fed in pieces
FIRST_POSITIONS = 1024

Pointer, Count = ctypes.c_void_p, ctypes.c_int64


def fields(kind: type, names: str) -> list:
    return [(name, kind) for name in names.split()]


class MatrixPointers(ctypes.Structure):
    _fields_ = fields(Pointer, "panels scales")


class LayerPointers(ctypes.Structure):
    _fields_ = [
        *fields(MatrixPointers, "qkv output gate up down"),
        *fields(Pointer, "qkv_bias attention_norm mlp_norm keys values"),
    ]


class ModelPointers(ctypes.Structure):
    _fields_ = [
        *fields(Pointer, "layers"),
        *fields(MatrixPointers, "lm_head"),
        *fields(Pointer, "embedding final_norm cosines sines"),
        *fields(Count, "layer_count hidden intermediate heads kv_heads head_size embeddings vocab positions"),
        ("eps", ctypes.c_float),
    ]


class BufferPointers(ctypes.Structure):
    _fields_ = [*fields(Pointer, "residual qkv gate_up attended swiglu scores normed packed"), ("packed_words", Count)]


@dataclass(frozen=True)
class Matrix:
    """One or several linears in the order in which the C++ step reads them; scales [rows], fp32, where they are in int8."""

    panels: torch.Tensor
    scales: torch.Tensor | None

    def point(self) -> MatrixPointers:
        return MatrixPointers(self.panels.data_ptr(), None if self.scales is None else self.scales.data_ptr())


@dataclass(frozen=True)
class Layer:
    """A layer's weights, in the order of LayerPointers."""

    matrices: tuple[Matrix, ...]
    vectors: tuple[torch.Tensor, ...]


def refusal(model: nn.Module) -> str | None:
    """Why the C++ step cannot run this model, for a warning; None where it can."""
    reason = layout.refusal(model)
    if reason:
        return reason
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return f"weights in {str(model.dtype).split('.')[-1]} on {model.device.type} have no C++ step"
    sizes = dimensions(model)
    widths = sizes.hidden, sizes.intermediate, sizes.heads * sizes.head_size
    step = 64 if is_int8(model) else 32
    if sizes.head_size % LANES or any(width % step for width in widths):
        return f"its widths are no multiples of {step} or its heads no multiples of 16"
    try:
        load_library()
    except NoLibraryError as error:
        return str(error)
    return None


class NativeModel(FixedCache):
    """`Model` (gammatune.runtimes.base) by the C++ step. Batch size 1.

    context: positions that may be needed at most; the KV cache starts smaller. `threads` starts as torch's number of now and
    may be set to another at any time. release: as the method does it, but layer by layer.
    """

    def __init__(self, model: nn.Module, vocab_size: int, context: int, release: bool = False):
        super().__init__(vocab_size, context)
        self.model, self.sizes, self.dtype = model, dimensions(model), model.dtype
        self.step = getattr(load_library(), f"forward_{str(model.dtype).split('.')[-1]}")
        self.step.argtypes = Pointer, Pointer, Pointer, Count, Count, Count, Pointer, ctypes.c_int
        self.step.restype = ctypes.c_bool
        self.weights: list[Layer] = []
        for layer in model.model.layers:
            self.weights.append(lay_out(layer))
            if release:
                hold_panels(layer, self.weights[-1])
                trim_heap()
        self.lm_head = lay_matrix(model.lm_head, rows=self.vocab_size)
        self.final_norm = copy_floats(model.model.norm.weight)
        self.caches = [[torch.zeros(0)] * 2 for _ in self.weights]  # keys and values of each layer
        self.capacity = 0
        self.keeps_features = False
        self._threads = torch.get_num_threads()
        self.grow(FIRST_POSITIONS)
        if release:
            self.release()

    @property
    def threads(self) -> int:
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = threads
        self.make_buffers()

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32.

        Raises ValueError when the cache would outgrow `context`, IndexError for a token that the model has no embedding for.
        """
        keep = min(keep, len(tokens))
        self.grow(self.length_after(len(tokens)))
        tokens = tokens.to(torch.long).contiguous()
        logits = torch.empty(keep, round_up(self.vocab_size, PANEL))
        first_kept = len(tokens) - keep
        if self.keeps_features:
            self.features = torch.empty(len(tokens), self.sizes.hidden)
        for first in range(0, len(tokens), CHUNK):
            n = min(CHUNK, len(tokens) - first)
            kept_before = max(0, first - first_kept)  # rows of logits that earlier chunks filled
            kept = max(0, first + n - first_kept) - kept_before
            places = tokens[first:].data_ptr(), n, self.length, kept, logits[kept_before:].data_ptr()
            if not self.step(self.pointers, self.buffers, *places, self.threads):
                raise IndexError(f"A token is outside the {self.model.config.vocab_size} that the model has embeddings for.")
            if self.keeps_features:
                self.features[first : first + n] = self.held[0][:n]  # the residual stream, where the step leaves it
            self.length += n
        return logits[:, : self.vocab_size]

    def keep_features(self) -> None:
        self.keeps_features = True

    def release(self) -> None:
        """Let the model's linears hold the panels, so that weights are in memory once; only other NativeModels and `restore`
        can use it then. Whoever shares its LM head shares the panels."""
        for layer, laid_out in zip(self.model.model.layers, self.weights, strict=True):
            hold_panels(layer, laid_out)
        set_weight(self.model.lm_head, self.lm_head.panels)
        trim_heap()

    def grow(self, positions: int) -> None:
        """A KV cache for that many positions, at least twice the former, and all addresses for the C++ step anew."""
        if positions <= self.capacity:
            return
        before = self.capacity
        # Whole tiles of keys, so up to 31 positions more than `context`
        self.capacity = min(round_up(max(positions, 2 * before), TILE), round_up(self.positions, TILE))
        kv_heads, head_size, dtype = self.sizes.kv_heads, self.sizes.head_size, self.model.dtype
        for cache in self.caches:
            old, cache[:] = list(cache), [torch.zeros(kv_heads, self.capacity, head_size, dtype=dtype) for _ in range(2)]
            if before:
                for new, held in zip(cache, old, strict=True):  # keys lie in tiles along the positions: the same copy
                    new.view(kv_heads, -1)[:, : held[0].numel()] = held.view(kv_heads, -1)
        cosines, sines = (table.float() for table in rope_tables(self.model, self.capacity))
        half = self.sizes.head_size // 2
        self.rope = cosines.contiguous(), torch.cat([-sines[:, :half], sines[:, half:]], dim=-1)
        self.pointers = ctypes.byref(self.describe_model())
        self.make_buffers()

    def describe_model(self) -> ModelPointers:
        layers = [
            LayerPointers(*(matrix.point() for matrix in layer.matrices), *addresses(*layer.vectors, *cache))
            for layer, cache in zip(self.weights, self.caches, strict=True)
        ]
        self.layers = (LayerPointers * len(layers))(*layers)
        embedding = self.model.model.embed_tokens.weight
        tensors = embedding, self.final_norm, *self.rope
        *widths, eps = self.sizes
        counts = len(layers), *widths, len(embedding), round_up(self.vocab_size, PANEL), self.capacity
        return ModelPointers(ctypes.addressof(self.layers), self.lm_head.point(), *addresses(*tensors), *counts, eps)

    def make_buffers(self) -> None:
        """What lies between the C++ step's phases, for CHUNK tokens; the last three are one per thread."""
        sizes, threads = self.sizes, self.threads
        plain, typed = torch.empty, partial(torch.empty, dtype=self.model.dtype)
        widest = max(sizes.hidden, sizes.intermediate, sizes.heads * sizes.head_size)
        self.held = [
            plain(CHUNK, sizes.hidden),
            plain(CHUNK, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size),
            plain(2, CHUNK, sizes.intermediate),
            typed(CHUNK, sizes.heads * sizes.head_size),
            typed(CHUNK, sizes.intermediate),
            plain(threads, TOKEN_GROUP, self.capacity),
            typed(threads, CHUNK, sizes.hidden),
            plain(threads, CHUNK + PANEL, widest + 3),  # a word for each number, three for each token
        ]
        buffers = BufferPointers(*(buffer.data_ptr() for buffer in self.held), self.held[-1][0].numel())
        self.buffers = ctypes.byref(buffers)


def is_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())


def addresses(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def lay_out(layer: nn.Module) -> Layer:
    parts = layer_parts(layer)
    bias = join_biases(parts)
    bias = torch.zeros(parts.q.out_features + 2 * parts.k.out_features) if bias is None else bias
    matrices = tuple(lay_matrix(*linears) for linears in read_together(layer))
    return Layer(matrices, tuple(map(copy_floats, (bias, parts.attention_norm, parts.mlp_norm))))


def read_together(layer: nn.Module) -> tuple[tuple[nn.Linear, ...], ...]:
    """The linears of each matrix of LayerPointers."""
    parts = layer_parts(layer)
    return (parts.q, parts.k, parts.v), (parts.output,), (parts.gate,), (parts.up,), (parts.down,)


def lay_matrix(*linears: nn.Linear, rows: int | None = None) -> Matrix:
    """Of linears of one kind, rows of the one after those of the other; of one, the first `rows` if given."""
    weights, int8 = [linear.weight.data for linear in linears], isinstance(linears[0], Int8Linear)
    scales = pad_rows(join([linear.scales[:rows] for linear in linears])) if int8 else None
    if weights[0].dim() == 4:  # released
        return Matrix(join(weights), scales)
    weight = pad_rows(join([weight[:rows] for weight in weights]))
    if not int8:
        return Matrix(lay_panels(weight, 64 // weight.element_size()), None)
    # In two's complement, adding 128 turns the highest bit around
    return Matrix(lay_panels(weight.view(torch.uint8), 4).bitwise_xor_(128), scales)


def lay_panels(weight: torch.Tensor, line: int) -> torch.Tensor:
    """[out, in] to [out / 16, in / line, 16, line]: `line` numbers of 16 rows side by side, read front to back."""
    rows, width = weight.shape
    return weight.view(rows // PANEL, PANEL, width // line, line).transpose(1, 2).contiguous()


def hold_panels(layer: nn.Module, laid_out: Layer) -> None:
    """The layer's linears hold their parts of the panels instead of weights [out, in]."""
    for linears, matrix in zip(read_together(layer), laid_out.matrices, strict=True):
        parts = matrix.panels.split([linear.out_features // PANEL for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            set_weight(linear, part)


def restore(model: nn.Module) -> None:
    """Weights [out, in] back where `release` took them; an LM head has the rows that were in use."""
    linears = [linear for layer in model.model.layers for linear in layer_parts(layer).linears]
    for linear in (*linears, model.lm_head):
        panels = linear.weight.data
        if panels.dim() == 4:
            weight = panels.transpose(1, 2).reshape(-1, linear.in_features)[: linear.out_features]
            if isinstance(linear, Int8Linear):
                weight, linear.scales = (weight ^ 128).view(torch.int8), linear.scales[: len(weight)]
            set_weight(linear, weight)


def set_weight(linear: nn.Linear, weight: torch.Tensor) -> None:
    # Another parameter and not other data of this one, which may be the embedding too
    former, linear.weight = linear.weight, nn.Parameter(weight, requires_grad=False)
    drop_pages(former)


def copy_floats(vector: torch.Tensor) -> torch.Tensor:
    return vector.to(torch.float32, copy=True)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pad_rows(weight: torch.Tensor) -> torch.Tensor:
    missing = -len(weight) % PANEL
    return torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])]) if missing else weight


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step
