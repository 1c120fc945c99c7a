"""A Llama's or Qwen2's forward pass on CUDA as replayed graphs, over a KV cache that stays in place.

Every number that changes between two calls (tokens, positions) lies in a buffer on the device, so one recorded graph per
count of tokens, count of logits and span of the attention serves all calls: a forward costs the host three small launches
and one replay. Around the attention, which is torch's own, the layers are compiled; the compiled pieces know neither the
span nor, beyond one token, the count of tokens, so they are compiled twice per model and not once per graph. No graph
leaves anything in the memory that all of them share, so they may be replayed in any order.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo import mark_dynamic
from torch.nn import functional as F

from gammatune.errors import UserError
from gammatune.runtimes import layout
from gammatune.runtimes.layout import Dimensions, FixedCache, dimensions, join_biases, layer_parts, rope_tables

WARM_UPS = 3  # what PyTorch's notes on CUDA graphs ask for before a capture


@dataclass(frozen=True)
class GraphSettings:
    """How a GraphedModel records."""

    most_tokens: int = 32  # longer feeds run without a graph
    span: int = 512  # shortest attention, in positions; the others are its doubles
    capacity: int = 4096  # positions that the KV cache holds at first
    capture: bool = True  # off: the same steps without graphs, for tests of the logic
    compiled: bool = True  # off: the layers without torch.compile


class Layer(NamedTuple):
    """One decoder layer's weights and its part of the KV cache: keys and values [kv heads, capacity, head size]."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Place(NamedTuple):
    """Where the fed tokens stand: their positions [n] and RoPE's cosines and sines there [n, head size]."""

    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def refusal(model: nn.Module) -> str | None:
    """Why this model has no CUDA graphs, for a warning; None where it can be recorded."""
    reason = layout.refusal(model)
    if reason:
        return reason
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or model.device.type != "cuda":
        return f"its weights are on {', '.join(sorted(map(str, devices)))}, not on one CUDA device"
    return None


class GraphedModel(FixedCache):
    """`Model` (gammatune.runtimes.base) replayed from CUDA graphs. Batch size 1.

    model: its projections become views of fused weights, which its own forward uses from then on. positions: most tokens
    that will be fed. The KV cache doubles, and graphs are recorded anew, when a text outgrows it.
    """

    records_graphs = True

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        positions: int,
        settings: GraphSettings | None = None,
    ):
        super().__init__(vocab_size, positions)
        self.model, self.sizes = model, dimensions(model)
        self.settings = settings or GraphSettings()
        self.device, self.dtype = model.device, model.dtype
        self.layers = [lay_out(layer) for layer in model.model.layers]
        most = self.settings.most_tokens
        self.fed_tokens, self.fed_positions = (torch.zeros(most, dtype=torch.long, device=self.device) for _ in range(2))
        self.logits = torch.zeros(most, self.vocab_size, device=self.device)
        self.pieces = PLAIN
        if self.settings.compiled:
            self.pieces = Pieces(*(torch.compile(piece, fullgraph=True, dynamic=False) for piece in PLAIN))
        self.set_capacity(min(self.settings.capacity, positions))

    def set_capacity(self, capacity: int) -> None:
        """A KV cache and RoPE tables for this many positions; what the cache holds is kept, graphs are not."""
        self.capacity = capacity
        self.graphs: dict[tuple[int, int, int], Callable[[], None]] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.settings.capture else None
        self.slots = torch.arange(capacity, device=self.device)
        self.cos, self.sin = rope_tables(self.model, capacity)
        for i, layer in enumerate(self.layers):
            self.layers[i] = layer._replace(keys=self.enlarge(layer.keys), values=self.enlarge(layer.values))

    def enlarge(self, held: torch.Tensor) -> torch.Tensor:
        # Zeros, since what was never written is multiplied by a weight of zero, and that must not be NaN
        grown = torch.zeros(self.sizes.kv_heads, self.capacity, self.sizes.head_size, dtype=self.dtype, device=self.device)
        if self.length:
            grown[:, : self.length] = held[:, : self.length]
        return grown

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32, the caller's own.

        Waits for the device only where a graph is recorded. Raises ValueError when the cache would outgrow `positions`.
        """
        n, end = tokens.shape[0], self.length_after(tokens.shape[0])
        keep = min(keep, n)
        self.make_capacity(end)
        if n > self.settings.most_tokens:
            logits = self.feed_long(tokens, keep)
        else:
            self.fed_tokens[:n].copy_(tokens)
            torch.arange(self.length, end, out=self.fed_positions[:n])
            self.find_graph(n, keep, self.span_of(end))()
            logits = self.logits[:keep].clone()  # the next replay writes there again
        self.length = end
        return logits

    def keep_features(self) -> None:
        raise UserError("CUDA graphs keep no hidden states, which a feature draft reads: set runtime=eager.")

    def make_capacity(self, end: int) -> None:
        if end > self.capacity:
            self.set_capacity(min(self.positions, 2 ** (end - 1).bit_length()))

    def span_of(self, end: int) -> int:
        """Positions that the attention reads when `end` tokens are in the cache."""
        return min(self.capacity, max(self.settings.span, 2 ** (end - 1).bit_length()))

    @torch.inference_mode()
    def warm(self, counts: Iterable[int], context: int, keep: int | None = None) -> None:
        """Record the graphs of these counts of tokens for every span up to `context` tokens; the cache is empty afterwards.

        keep: logits of each; None is all of them, as verification asks for.
        """
        self.reset()
        self.make_capacity(self.length_after(context))
        spans = {self.span_of(end) for end in range(1, context + 1)}
        for span in sorted(spans):
            for n in counts:
                torch.arange(n, out=self.fed_positions[:n])
                self.find_graph(n, keep or n, span)

    def find_graph(self, *key: int) -> Callable[[], None]:
        """What runs a step of this (count of tokens, logits kept, span), recorded where it is met for the first time."""
        if key not in self.graphs:
            run = partial(self.step, *key)
            self.try_compiled(run)
            self.graphs[key] = record_graph(run, self.device, self.pool).replay if self.settings.capture else run
        return self.graphs[key]

    def try_compiled(self, run: Callable[[], None]) -> None:
        """A first run, which compiles what is new; without the compiler, and with one warning, where that fails."""
        try:
            with dynamo_config.patch(recompile_limit=256, accumulated_recompile_limit=1024):
                run()
        except RuntimeError as error:
            if self.pieces is PLAIN or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().splitlines()[0]
            print(f"gammatune: CUDA graphs without torch.compile, which failed ({reason}).", file=sys.stderr)
            self.pieces = PLAIN
            run()

    def step(self, n: int, keep: int, span: int) -> None:
        """From the buffers' first n tokens and positions to the first `keep` rows of `logits`; all of it on the device."""
        positions = self.fed_positions[:n]
        attention = partial(attention_over, span, self.mask(positions, span))
        self.logits[:keep] = self.run_layers(self.fed_tokens[:n], positions, keep, attention, self.pieces)

    def mask(self, positions: torch.Tensor, span: int) -> torch.Tensor:
        """[rows, span] to be added to scores: 0 up to a row's own position, -inf after it, stale entries included."""
        hidden = self.slots[:span] > positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill(hidden, -torch.inf)
        return mask.repeat(self.sizes.heads // self.sizes.kv_heads, 1)

    def feed_long(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """A prompt, without a graph."""
        end = self.length + tokens.shape[0]
        positions = torch.arange(self.length, end, device=self.device)
        attention = partial(attention_over, end, self.mask(positions, end)) if self.length else attention_from_start
        return self.run_layers(tokens, positions, keep, attention, PLAIN).float()

    def run_layers(
        self, tokens: torch.Tensor, positions: torch.Tensor, keep: int, attention: Callable, pieces: "Pieces"
    ) -> torch.Tensor:
        """tokens and positions [n]; logits [keep, vocab_size] of the last `keep`."""
        x = F.embedding(tokens, self.model.model.embed_tokens.weight)  # the residual stream [n, hidden]
        place = Place(positions, self.cos[positions], self.sin[positions])
        free_count(x, *place)
        queries = pieces.start(x, self.layers[0], self.sizes, place)
        for layer, following in pairwise(self.layers):
            attended = attention(queries, layer)
            free_count(x)
            free_count(attended, dim=1)
            x, queries = pieces.cross(x, attended, layer, following, self.sizes, place)
        # Only the kept rows of the last layer are needed once its keys and values are cached
        x, attended = x[-keep:], attention(queries, self.layers[-1])[:, -keep:].contiguous()
        free_count(x)
        free_count(attended, dim=1)
        x = pieces.finish(x, attended, self.layers[-1], self.sizes)
        lm_head = self.model.lm_head.weight[: self.vocab_size]
        return F.linear(F.rms_norm(x, x.shape[-1:], self.model.model.norm.weight, self.sizes.eps), lm_head)


def record_graph(run: Callable[[], None], device: torch.device, pool: tuple) -> torch.cuda.CUDAGraph:
    """Warmed up on a stream of its own and recorded, as PyTorch's notes on CUDA graphs describe."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
    return graph


def lay_out(layer: nn.Module) -> Layer:
    """Of a transformers layer, as yet without a KV cache."""
    parts = layer_parts(layer)
    return Layer(
        attention_norm=parts.attention_norm,
        qkv=fuse(parts.q, parts.k, parts.v),
        qkv_bias=join_biases(parts),
        output=parts.output.weight.data,
        mlp_norm=parts.mlp_norm,
        gate_up=fuse(parts.gate, parts.up),
        down=parts.down.weight.data,
        keys=torch.empty(0),
        values=torch.empty(0),
    )


def fuse(*linears: nn.Linear) -> torch.Tensor:
    """Their weights as one tensor [sum of out, in], of which the linears hold views afterwards: nothing is kept twice."""
    weights = [linear.weight for linear in linears]
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    starts = [weight.data_ptr() for weight in weights]
    ends = [start + weight.nbytes for start, weight in zip(starts, weights, strict=True)]
    # Fused before, by another GraphedModel of the same model
    if len({weight.untyped_storage().data_ptr() for weight in weights}) == 1 and ends[:-1] == starts[1:]:
        return weights[0].data.as_strided((rows, width), (width, 1))
    fused = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, fused.split([weight.shape[0] for weight in weights]), strict=True):
        weight.data = part
    return fused


# The pieces of a pass, functions of tensors alone: no number that the host knows but for shapes, so what was recorded once
# serves every later position.


def rotate(x: torch.Tensor, place: Place) -> torch.Tensor:
    """RoPE of x [heads, n, head size]."""
    left, right = x.chunk(2, dim=-1)
    return x * place.cos + torch.cat([-right, left], dim=-1) * place.sin


def start_layer(x: torch.Tensor, layer: Layer, sizes: Dimensions, place: Place) -> torch.Tensor:
    """RMS norm, QKV projection and RoPE: x [n, hidden] to queries [heads, n, head size]; keys and values into the cache."""
    heads, both, n = sizes.heads, sizes.heads + sizes.kv_heads, x.shape[0]
    normed = F.rms_norm(x, x.shape[-1:], layer.attention_norm, sizes.eps)
    qkv = F.linear(normed, layer.qkv, layer.qkv_bias).view(n, both + sizes.kv_heads, sizes.head_size).transpose(0, 1)
    rotated = rotate(qkv[:both], place)
    layer.keys.index_copy_(1, place.positions, rotated[heads:])
    layer.values.index_copy_(1, place.positions, qkv[both:])
    return rotated[:heads]


def finish_layer(x: torch.Tensor, attended: torch.Tensor, layer: Layer, sizes: Dimensions) -> torch.Tensor:
    """Output projection and SwiGLU: x [n, hidden] and attended [heads, n, head size] to the layer's output [n, hidden]."""
    x = x + F.linear(attended.transpose(0, 1).reshape(x.shape[0], -1), layer.output)
    gate, up = F.linear(F.rms_norm(x, x.shape[-1:], layer.mlp_norm, sizes.eps), layer.gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, layer.down)


def cross_layers(
    x: torch.Tensor, attended: torch.Tensor, layer: Layer, following: Layer, sizes: Dimensions, place: Place
) -> tuple[torch.Tensor, torch.Tensor]:
    """The end of one layer and the start of the following in one piece, so that the compiler may join the two."""
    x = finish_layer(x, attended, layer, sizes)
    return x, start_layer(x, following, sizes, place)


class Pieces(NamedTuple):
    start: Callable
    cross: Callable
    finish: Callable


PLAIN = Pieces(start_layer, cross_layers, finish_layer)


def attention_over(span: int, mask: torch.Tensor, queries: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Attention over the first `span` positions. queries, result: [heads, n, head size]; mask [rows, span], added.

    The query heads of one key head become rows of one head: so no key is copied, and kernels without grouping will do.
    """
    grouped = queries.reshape(layer.keys.shape[0], -1, queries.shape[-1])  # [kv heads, rows, head size]
    keys, values = layer.keys[None, :, :span], layer.values[None, :, :span]
    return F.scaled_dot_product_attention(grouped[None], keys, values, attn_mask=mask)[0].reshape(queries.shape)


def attention_from_start(queries: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Causal attention where the cache was empty before. queries, result: [heads, n, head size]."""
    n = queries.shape[1]
    keys, values = layer.keys[None, :, :n], layer.values[None, :, :n]
    return F.scaled_dot_product_attention(queries[None], keys, values, is_causal=True, enable_gqa=True)[0]


def free_count(*tensors: torch.Tensor, dim: int = 0) -> None:
    """Tell the compiler that this dimension, the count of tokens, varies; a single token is a case of its own."""
    for tensor in tensors:
        if tensor.shape[dim] > 1:
            mark_dynamic(tensor, dim)
