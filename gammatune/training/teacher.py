"""The target as teacher: greedy answers to many prompts side by side, with the features of every position.

A loop of our own, because transformers' copies each layer's whole KV cache for every token (to append to it, and once more
to repeat keys for grouped queries), which on a CPU takes longer than the forward itself, and because the residual stream
before the final norm comes out of it anyway: features cost no forward of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gammatune.errors import UserError
from gammatune.models.pair import Pair
from gammatune.runtimes.layout import dimensions, refusal
from gammatune.training.attention import attend, rotate, split_heads

CACHED = {"cpu": 32_768, "cuda": 262_144}  # cache positions of a batch, padding included
CROWD = 0.75  # of a batch's rows, below which those that have ended are taken out


@dataclass(frozen=True)
class Answered:
    """One text: a prompt and the target's answer."""

    ids: torch.Tensor  # [n] int32; the end token is the last of them, where the answer ended
    prompt: int  # tokens of the prompt
    features: torch.Tensor  # [n - 1, hidden] bf16: of every token but the last, before the final norm


class Teacher:
    """A target that answers. Raises UserError where its layers have no form here."""

    def __init__(self, pair: Pair, answer_tokens: int, cached: int | None = None):
        reason = refusal(pair.target)
        if reason:
            raise UserError(f"The target of {pair.name} cannot teach a feature draft: {reason}.")
        self.target, self.ends = pair.target, set(pair.eos_ids)
        self.answer_tokens = answer_tokens
        self.cached = cached or CACHED[pair.device.type]

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], tell: Callable[[int], None] = lambda new: None) -> list[Answered]:
        """The target's own answers, in the prompts' order. tell: is called with how many tokens were new."""
        answers = [None] * len(prompts)
        for rows in group_rows([len(prompt) + self.answer_tokens for prompt in prompts], self.cached):
            for row, answered in zip(rows, self.answer_batch([prompts[row] for row in rows]), strict=True):
                answers[row] = answered
                tell(len(answered.ids) - answered.prompt)
        return answers

    def answer_batch(self, prompts: list[list[int]]) -> list[Answered]:
        batch = SideBySide(self.target, prompts, self.answer_tokens)
        residual = batch.feed(batch.padded)
        new, made = [[] for _ in prompts], [[residual[row, batch.starts[row] :]] for row in range(len(prompts))]
        live = set(range(len(prompts)))
        while live:
            chosen = self.target.lm_head(self.target.model.norm(residual[:, -1])).argmax(-1)
            for row, token in zip(batch.rows, chosen.tolist(), strict=True):
                if row in live:
                    new[row].append(token)
                    if token in self.ends or len(new[row]) == self.answer_tokens:
                        live.remove(row)
            if len(live) < CROWD * len(batch.rows):
                kept = [at for at, row in enumerate(batch.rows) if row in live]
                batch.keep(kept)
                chosen = chosen[kept]
            if live:
                residual = batch.feed(chosen[:, None])
                for row, states in zip(batch.rows, residual, strict=True):
                    if row in live:
                        made[row].append(states)
        return [
            Answered(
                torch.tensor([*prompt, *answer], dtype=torch.int32), len(prompt), torch.cat(parts).to("cpu", torch.bfloat16)
            )
            for prompt, answer, parts in zip(prompts, new, made, strict=True)
        ]


class SideBySide:
    """Texts that grow at the same column of a KV cache that stays in place; shorter ones begin later (left padding)."""

    def __init__(self, model: nn.Module, prompts: list[list[int]], room: int):
        sizes, device = dimensions(model), model.device
        longest = max(map(len, prompts))
        self.model, self.column = model, 0
        self.rows = list(range(len(prompts)))  # which text each row of the batch is
        self.starts = [longest - len(prompt) for prompt in prompts]  # each text's first column
        self.first = torch.tensor(self.starts, device=device)
        padded = [[prompt[0]] * start + prompt for start, prompt in zip(self.starts, prompts, strict=True)]
        self.padded = torch.tensor(padded, device=device)
        shape = (len(prompts), sizes.kv_heads, longest + room, sizes.head_size)
        # Zeros: what was never written is multiplied by a weight of zero, and that must not be NaN
        self.cache = [[torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2)] for _ in model.model.layers]

    def keep(self, kept: list[int]) -> None:
        """Go on with these rows of the batch alone."""
        self.rows, self.first = [self.rows[at] for at in kept], self.first[kept]
        for layer in self.cache:
            layer[:] = [part[kept] for part in layer]

    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The residual stream [rows, n, hidden] before the final norm; tokens [rows, n] come at the next columns."""
        decoder, begin, end = self.model.model, self.column, self.column + tokens.shape[1]
        columns = torch.arange(end, device=tokens.device)
        own = columns[begin:, None]
        # A padding column sees itself: a softmax over nothing would be NaN
        seen = (columns <= own) & ((columns >= self.first[:, None, None]) | (columns == own))
        residual = decoder.embed_tokens(tokens)
        turns = decoder.rotary_emb(residual, (columns[begin:] - self.first[:, None]).clamp(min=0))
        for layer, (keys, values) in zip(decoder.layers, self.cache, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(residual)
            queries, new_keys, new_values = (
                split_heads(project(normed), attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys[:, :, begin:end], values[:, :, begin:end] = rotate(new_keys, *turns), new_values
            mixed = attend(rotate(queries, *turns), keys[:, :, :end], values[:, :, :end], seen)
            residual = residual + attention.o_proj(mixed)
            residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
        self.column = end
        return residual


def group_rows(sizes: list[int], budget: int) -> list[list[int]]:
    """Rows of similar size, the largest first.

    No group takes more than the budget when padded, but for single rows; and none is padded to more than twice a row's size,
    since reading padding costs what reading a prompt costs.
    """
    groups = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        longest = sizes[groups[-1][0]] if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest > budget or 2 * sizes[row] < longest:
            groups.append([])
        groups[-1].append(row)
    return groups
