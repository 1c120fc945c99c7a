"""A Llama's forward pass on CUDA as replayed graphs, over a cache that stays where it is.

Every number that changes between two calls (tokens, positions) lies in a buffer on the device, so one recorded graph per
count of tokens, count of logits and reach of the attention serves all calls: a forward costs the host three small launches
and one replay. Around the attention, which is torch's own, the layers are compiled; the compiled pieces know neither the
reach nor, beyond one token, the count of tokens, so they are compiled twice per model and not once per graph. No graph
leaves anything in the memory that all of them share, so they may be replayed in any order.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.nn import functional as F

from gammatune.runtimes.cuda_layers import PLAIN, Sizes, attend_from_start, attend_within, free_count, lay_out
from gammatune.runtimes.fixed_cache import FixedCache

WARM_UPS = 3  # what PyTorch's notes on CUDA graphs ask for before a capture


@dataclass(frozen=True)
class GraphSettings:
    """most_tokens: longer feeds run without a graph. reach: the shortest attention, in positions, from which the others grow
    by doubling. room: positions that the cache holds at first. capture and compiled: off where only the logic is wanted.
    """

    most_tokens: int = 32
    reach: int = 512
    room: int = 4096
    capture: bool = True
    compiled: bool = True


class GraphedModel(FixedCache):
    """What the decoding loop knows of a model (see runtime.CachedModel), replayed from CUDA graphs. Batch size 1.

    model: its projections become views of fused weights, which its own forward uses from then on. positions: most tokens
    that will be fed. ids: as in CachedModel, of a draft with a reduced head. The cache doubles, and graphs are recorded
    anew, when a text outgrows it.
    """

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        positions: int,
        ids: torch.Tensor | None = None,
        settings: GraphSettings | None = None,
    ):
        super().__init__(vocab_size, ids)
        self.model, self.positions_limit = model, positions
        self.settings = settings or GraphSettings()
        config, attention = model.config, model.model.layers[0].self_attn
        self.sizes = Sizes(config.num_attention_heads, config.num_key_value_heads, attention.head_dim, config.rms_norm_eps)
        self.device, self.dtype = model.device, model.dtype
        self.layers = [lay_out(layer) for layer in model.model.layers]
        most = self.settings.most_tokens
        self.tokens, self.positions = (torch.zeros(most, dtype=torch.long, device=self.device) for _ in range(2))
        self.logits = torch.zeros(most, self.vocab_size, device=self.device)
        self.pieces = PLAIN
        if self.settings.compiled:
            self.pieces = tuple(torch.compile(piece, fullgraph=True, dynamic=False) for piece in PLAIN)
        self.set_room(min(self.settings.room, positions))

    def set_room(self, room: int) -> None:
        """Caches and tables for this many positions; what the cache holds is kept, graphs are not."""
        self.room = room
        self.graphs: dict[tuple[int, int, int], Callable[[], None]] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.settings.capture else None
        self.slots = torch.arange(room, device=self.device)
        cos, sin = self.model.model.rotary_emb(self.model.model.embed_tokens.weight[:1, None], self.slots[None])
        self.cos, self.sin = cos[0], sin[0]  # [room, size]
        for i, layer in enumerate(self.layers):
            self.layers[i] = layer._replace(keys=self.enlarge(layer.keys), values=self.enlarge(layer.values))

    def enlarge(self, held: torch.Tensor) -> torch.Tensor:
        # Zeros, since what was never written is multiplied by a weight of zero, and that must not be NaN
        grown = torch.zeros(self.sizes.kv_heads, self.room, self.sizes.size, dtype=self.dtype, device=self.device)
        if self.length:
            grown[:, : self.length] = held[:, : self.length]
        return grown

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Append tokens [n] to the cache; logits [keep, vocab_size] of the last `keep` of them, in fp32, the caller's own.

        Waits for the device only where a graph is recorded. Raises ValueError when the cache would outgrow `positions`.
        """
        n, end = tokens.shape[0], self.length + tokens.shape[0]
        keep = min(keep, n)
        self.make_room(end)
        if n > self.settings.most_tokens:
            logits = self.feed_long(tokens, keep)
        else:
            self.tokens[:n].copy_(tokens)
            torch.arange(self.length, end, out=self.positions[:n])
            self.find_graph(n, keep, self.reach_of(end))()
            logits = self.logits[:keep].clone()  # the next replay writes there again
        self.length = end
        return logits

    def make_room(self, end: int) -> None:
        if end > self.positions_limit:
            raise ValueError(f"{end} tokens do not fit a cache of {self.positions_limit} positions.")
        if end > self.room:
            self.set_room(min(self.positions_limit, 2 ** (end - 1).bit_length()))

    def reach_of(self, end: int) -> int:
        """Positions that the attention looks at when `end` tokens are in the cache."""
        return min(self.room, max(self.settings.reach, 2 ** (end - 1).bit_length()))

    @torch.inference_mode()
    def warm(self, counts: list[int], keep: int | None = None, context: int = 1) -> None:
        """Record the graphs of these counts of tokens for every reach up to `context` tokens; the cache is empty afterwards.

        keep: logits of each; None is all of them, as verification asks for.
        """
        self.reset()
        self.make_room(context)
        reaches = {self.reach_of(end) for end in range(1, context + 1)}
        for reach in sorted(reaches):
            for n in counts:
                torch.arange(n, out=self.positions[:n])
                self.find_graph(n, keep or n, reach)

    def find_graph(self, *key: int) -> Callable[[], None]:
        """What runs a step of this (count of tokens, logits kept, reach), recorded where it is met for the first time."""
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

    def step(self, n: int, keep: int, reach: int) -> None:
        """From the buffers' first n tokens and positions to the first `keep` rows of `logits`; all of it on the device."""
        positions = self.positions[:n]
        attend = partial(attend_within, reach, self.mask(positions, reach))
        self.logits[:keep] = self.run_layers((self.tokens[:n], positions), keep, attend, self.pieces)

    def mask(self, positions: torch.Tensor, reach: int) -> torch.Tensor:
        """[rows, reach] to be added to scores: 0 up to a row's own position, -inf behind it, stale entries included."""
        hidden = self.slots[:reach] > positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill(hidden, -torch.inf)
        return mask.repeat(self.sizes.heads // self.sizes.kv_heads, 1)

    def feed_long(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """A prompt, without a graph."""
        end = self.length + tokens.shape[0]
        positions = torch.arange(self.length, end, device=self.device)
        attend = partial(attend_within, end, self.mask(positions, end)) if self.length else attend_from_start
        return self.run_layers((tokens, positions), keep, attend, PLAIN).float()

    def run_layers(self, feed: tuple, keep: int, attend: Callable, pieces: tuple) -> torch.Tensor:
        """feed: tokens and positions [n] each; logits [keep, vocab_size] of the last `keep`."""
        tokens, positions = feed
        start, cross, finish = pieces
        x = F.embedding(tokens, self.model.model.embed_tokens.weight)
        place = (self.cos[positions], self.sin[positions]), positions
        free_count(x, *place[0], positions)
        queries = start(x, self.layers[0], self.sizes, *place)
        for layer, following in pairwise(self.layers):
            seen = attend(queries, layer)
            free_count(x)
            free_count(seen, dim=1)
            x, queries = cross(x, seen, (layer, following), self.sizes, place)
        x, seen = x[-keep:], attend(queries, self.layers[-1])[:, -keep:].contiguous()
        free_count(x)
        free_count(seen, dim=1)
        x = finish(x, seen, self.layers[-1], self.sizes)
        head = self.model.lm_head.weight[: self.vocab_size]
        return F.linear(F.rms_norm(x, x.shape[-1:], self.model.model.norm.weight, self.sizes.eps), head)


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
