"""Batched generation with the target model, storing its top-k distribution at every position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .fast_llama import TOP_K, FastLlama

EOS = 2


@dataclass
class Sample:
    """One labelled sequence of ``n`` tokens.

    ``top_ids`` and ``top_p`` (n - 1, K) hold the target's most likely continuations after each position.
    """

    ids: np.ndarray
    prompt_len: int
    top_ids: np.ndarray
    top_p: np.ndarray
    kind: str = ""


@dataclass
class Settings:
    """New tokens per row, sampling temperature (0 is greedy), cached positions and rows per batch."""

    max_new: int = 256
    temperature: float = 0.0
    cache_positions: int = 72_000
    max_rows: int = 160
    seed: int = 0


@dataclass
class _State:
    """Rows still being decoded; ``alive`` (R,) maps them to rows of the batch."""

    alive: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    cache: torch.Tensor
    bias: torch.Tensor

    def keep(self, mask: torch.Tensor) -> None:
        """Drop the rows outside ``mask`` (R,), copying the cache."""
        self.alive, self.tokens, self.positions = self.alive[mask], self.tokens[mask], self.positions[mask]
        self.cache, self.bias = self.cache[:, :, mask], self.bias[mask]


class _Record:
    """Generated tokens (B, max_new) and their labels (B, max_new, K) of one batch."""

    def __init__(self, rows: int, max_new: int):
        self.tokens = torch.zeros(rows, max_new, dtype=torch.int32)
        self.top_ids = torch.zeros(rows, max_new, TOP_K, dtype=torch.int32)
        self.top_p = torch.zeros(rows, max_new, TOP_K, dtype=torch.float16)
        self.lengths = torch.zeros(rows, dtype=torch.long)

    def add(self, rows: torch.Tensor, step: int, tokens: torch.Tensor, labels: tuple) -> None:
        """Store the tokens (R,) chosen at ``step`` and the labels (R, K) that they were chosen from."""
        rows = rows.cpu()
        self.tokens[rows, step] = tokens.int().cpu()
        self.top_ids[rows, step], self.top_p[rows, step] = labels[0].cpu(), labels[1].cpu()
        self.lengths[rows] = step + 1


def pick(labels: tuple, temperature: float) -> torch.Tensor:
    """Choose the next token (R,) from top-k ids and probabilities (R, K), greedily at temperature 0."""
    ids, probabilities = labels
    if temperature == 0:
        return ids[:, 0].long()
    weights = probabilities.float().clamp_min(1e-6) ** (1 / temperature)
    return ids.gather(1, torch.multinomial(weights, 1)).squeeze(1).long()


def _prefill(model: FastLlama, prompts: list[list[int]], max_new: int) -> tuple[_State, list[tuple], tuple]:
    """Fill the left-padded cache; return the state, each row's prompt labels and the last labels."""
    width, rows = max(map(len, prompts)), len(prompts)
    layers = len(model.layers)
    shape = (layers, 2, rows, model.kv, width + max_new, model.dim)
    cache = torch.zeros(shape, dtype=model.dtype, device=model.device)
    bias = torch.zeros(rows, 1, 1, width + max_new, dtype=model.dtype, device=model.device)
    labels = []
    for row, prompt in enumerate(prompts):
        part = torch.empty(layers, 2, 1, model.kv, len(prompt), model.dim, dtype=model.dtype, device=model.device)
        hidden = model.prefill(torch.tensor([prompt], device=model.device), part)
        cache[:, :, row, :, width - len(prompt) : width] = part[:, :, 0]
        bias[row, ..., : width - len(prompt)] = -torch.inf
        labels.append(model.label(hidden[0], 512))
    positions = torch.tensor([len(p) for p in prompts], device=model.device)
    last = tuple(torch.stack([label[i][-1] for label in labels]) for i in (0, 1))
    alive = torch.arange(rows, device=model.device)
    return _State(alive, alive, positions, cache, bias), labels, last


def generate_batch(model: FastLlama, prompts: list[list[int]], settings: Settings) -> list[Sample]:
    """Continue prompts until the end token or ``max_new`` tokens; finished rows leave the cache."""
    state, prompt_labels, labels = _prefill(model, prompts, settings.max_new)
    record, width = _Record(len(prompts), settings.max_new), max(map(len, prompts))
    running = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for step in range(settings.max_new):
        state.tokens = pick(labels, settings.temperature)
        record.add(state.alive[running], step, state.tokens[running], tuple(x[running] for x in labels))
        running = running & (state.tokens != EOS)
        if not running.any() or step + 1 == settings.max_new:
            break
        if running.float().mean() < 0.8:
            state.keep(running)
            running = running[running]
        hidden = model.step(state.tokens, state.positions, state.cache, width + step, state.bias)
        state.positions = state.positions + 1
        labels = model.label(hidden)
    return [_assemble(p, label, record, row) for row, (p, label) in enumerate(zip(prompts, prompt_labels, strict=True))]


def _assemble(prompt: list[int], prompt_label: tuple, record: _Record, row: int) -> Sample:
    new = int(record.lengths[row])
    ids = np.concatenate([prompt, record.tokens[row, :new].numpy()]).astype(np.uint16)
    # The last prompt position and the first generated token share one label.
    tops = [
        torch.cat((prompt_label[i].cpu(), part[row, 1:new])).numpy() for i, part in enumerate((record.top_ids, record.top_p))
    ]
    return Sample(ids, len(prompt), tops[0].astype(np.uint16), tops[1])


def batches(prompts: list[list[int]], settings: Settings) -> list[list[int]]:
    """Group prompt indices of similar length, longest first, within the cache budget."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    groups: list[list[int]] = []
    while order:
        rows = settings.cache_positions // (len(prompts[order[0]]) + settings.max_new)
        rows = max(1, min(rows, settings.max_rows))
        groups.append(order[:rows])
        order = order[rows:]
    return groups


@torch.inference_mode()
def generate(model: FastLlama, prompts: list[list[int]], settings: Settings, title: str = "") -> list[Sample]:
    """Generate for all prompts, in their order."""
    torch.manual_seed(settings.seed)
    samples: list[Sample | None] = [None] * len(prompts)
    with tqdm(total=len(prompts), desc=title or "generate", mininterval=5) as progress:
        for group in batches(prompts, settings):
            for index, sample in zip(group, generate_batch(model, [prompts[i] for i in group], settings), strict=True):
                samples[index] = sample
            progress.update(len(group))
    return samples


@torch.inference_mode()
def label_texts(model: FastLlama, texts: list[list[int]], title: str = "label") -> list[Sample]:
    """Label plain token sequences without generating; every position counts as prompt."""
    samples = []
    for ids in tqdm(texts, desc=title, mininterval=5):
        hidden = model.prefill(torch.tensor([ids], device=model.device))
        top_ids, top_p = (part.cpu().numpy() for part in model.label(hidden[0, :-1], 512))
        samples.append(Sample(np.array(ids, np.uint16), len(ids), top_ids.astype(np.uint16), top_p))
    return samples


def save_samples(path: Path, samples: list[Sample]) -> None:
    """Write one shard, atomically."""
    payload = [(s.ids, s.prompt_len, s.top_ids, s.top_p, s.kind) for s in samples]
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    temporary.rename(path)


def load_samples(path: Path) -> list[Sample]:
    """Read one shard written by :func:`save_samples`."""
    return [Sample(*item) for item in torch.load(path, weights_only=False)]
