"""Training batches: padding, position weights, soft targets, and synthetic copying exercises."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from .fast_llama import TOP_K
from .student import Shape
from .teacher import Sample

PREFIX = 20  # the chat template's constant system message needs no training


@dataclass
class Recipe:
    """Everything that determines a training run; ``step_tokens`` counts all workers."""

    shape: Shape = field(default_factory=Shape)
    minutes: float = 40.0
    step_tokens: int = 6144
    rate: float = 1.5e-3
    optimiser: str = "adamw"
    hard: float = 0.5
    prompt_weight: float = 0.25
    warmup: int = 20
    frequent: int = 6000
    copy_every: int = 8
    report_seconds: float = 200.0
    seed: int = 0
    device: str = "cpu"
    max_steps: int = 10**9


@dataclass
class Batch:
    """Padded ids (B, S), flat indices (N,) of trained positions, their targets and shares (N, K)."""

    ids: torch.Tensor
    positions: torch.Tensor
    top_ids: torch.Tensor
    shares: torch.Tensor


def position_weights(sample: Sample, recipe: Recipe) -> np.ndarray:
    """Loss weight of each predicted position (n - 1,): full on answers, less on prompts and sampled text."""
    weights = np.full(len(sample.ids) - 1, 1.0 if sample.kind != "article" else 0.5, np.float32)
    weights[: sample.prompt_len - 1] = recipe.prompt_weight if sample.kind != "copy" else 0.0
    weights[:PREFIX] = 0.0
    return weights


def make_batch(samples: list[Sample], recipe: Recipe) -> Batch:
    """Right-pad samples and mix hard and soft targets into shares that sum to the position's weight."""
    width = max(len(s.ids) for s in samples) - 1
    ids = np.zeros((len(samples), width), np.int64)
    positions, tops, shares = [], [], []
    for row, sample in enumerate(samples):
        count = len(sample.ids) - 1
        ids[row, :count] = sample.ids[:-1]
        weights = position_weights(sample, recipe)
        used = weights.nonzero()[0]
        soft = sample.top_p[used].astype(np.float32)
        mixed = (1 - recipe.hard) * soft / soft.sum(1, keepdims=True)
        mixed[:, 0] += recipe.hard
        positions.append(row * width + used)
        tops.append(sample.top_ids[used].astype(np.int64))
        shares.append(mixed * weights[used, None])
    arrays = (ids, np.concatenate(positions), np.concatenate(tops), np.concatenate(shares))
    return Batch(*(torch.from_numpy(a).to(recipe.device) for a in arrays))


def copy_samples(samples: list[Sample], tokens: int, rng: random.Random) -> list[Sample]:
    """Spans that occur twice, half of them shuffled, to teach copying from the context early on.

    Only the second occurrence is trained, with its own tokens as hard targets.
    """
    width, made = rng.randint(60, 160), []
    for _ in range(max(1, tokens // (3 * width))):
        parts = [rng.choice(samples).ids[PREFIX:][:width] for _ in range(2)]
        if rng.random() < 0.5:
            parts = [np.array(rng.sample(part.tolist(), len(part)), np.uint16) for part in parts]
        ids = np.concatenate((parts[0], parts[1], parts[0]))
        tops = np.repeat(ids[1:, None], TOP_K, axis=1)
        shares = np.zeros(tops.shape, np.float16)
        shares[:, 0] = 1
        made.append(Sample(ids, len(parts[0]) + len(parts[1]) + 3, tops, shares, "copy"))
    return made


def batch_stream(samples: list[Sample], tokens: int, rng: random.Random):
    """Endless groups of similar-length samples of about ``tokens`` padded tokens, reshuffled every epoch."""
    while True:
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids) * rng.uniform(0.9, 1.1))
        groups, current = [], []
        for index in order:
            if current and (len(current) + 1) * len(samples[index].ids) > tokens:
                groups.append(current)
                current = []
            current.append(index)
        rng.shuffle(groups)
        for group in groups:
            yield [samples[i] for i in group]
