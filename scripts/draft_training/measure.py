"""Exact greedy acceptance of a draft, from teacher-forced agreement with the target's own output."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .teacher import Sample

GAMMA = 5
BINS = np.linspace(0, 1, 11)


@dataclass
class Bits:
    """Per answer token of a sample: whether the draft ``matched`` (m,) and its ``top1`` probability (m,)."""

    kind: str
    matched: np.ndarray
    top1: np.ndarray


@torch.no_grad()
def agreement_bits(draft, samples: list[Sample], temperature: float = 1.0, block: int = 256) -> list[Bits]:
    """Compare the draft's greedy choice with the target's at every answer token, over the full vocabulary."""
    results = []
    for sample in samples:
        ids = torch.from_numpy(sample.ids[:-1].astype(np.int64)).to(draft.embedding.device)
        hidden = draft(ids[None])[0, sample.prompt_len - 1 :] / temperature
        wanted = torch.from_numpy(sample.ids[sample.prompt_len :].astype(np.int64)).to(ids.device)
        matched, top1 = [], []
        for part, goal in zip(hidden.split(block), wanted.split(block), strict=True):
            logits = F.linear(part, draft.embedding).float()
            best, choice = logits.max(-1)
            matched.append((choice == goal).cpu().numpy())
            top1.append((best - logits.logsumexp(-1)).exp().cpu().numpy())
        results.append(Bits(sample.kind, np.concatenate(matched), np.concatenate(top1)))
    return results


def rounds(matched: np.ndarray, gamma: int = GAMMA) -> list[int]:
    """Tokens emitted by each round; ``matched`` (m,) says which draft tokens the target would accept.

    A round accepts the leading matches of its ``gamma`` drafts and adds the target's own next token. At the
    end of the text that extra token may not exist.
    """
    emitted, position = [], 0
    while position < len(matched):
        window = matched[position : position + gamma]
        accepted = len(window) if window.all() else int(window.argmin())
        emitted.append(min(accepted + 1, len(matched) - position))
        position += accepted + 1
    return emitted


def summarise(bits: list[Bits], gamma: int = GAMMA) -> dict:
    """Mean emitted tokens per round and agreement, per task and pooled, with a reliability table."""
    groups = defaultdict(list)
    for item in bits:
        groups[item.kind].append(item)
        groups["overall"].append(item)
    tasks = {}
    for kind in sorted(groups):
        emitted = [n for item in groups[kind] for n in rounds(item.matched, gamma)]
        matched = np.concatenate([item.matched for item in groups[kind]])
        tasks[kind] = {
            "mean_emitted": sum(emitted) / len(emitted),
            "agreement": float(matched.mean()),
            "tokens": len(matched),
            "rounds": len(emitted),
            "samples": len(groups[kind]),
        }
    return {"gamma": gamma, "tasks": tasks, "reliability": reliability(bits)}


def reliability(bits: list[Bits]) -> list[dict]:
    """Match rate and mean top-1 probability per tenth of top-1 probability."""
    top1, matched = (np.concatenate([getattr(b, name) for b in bits]) for name in ("top1", "matched"))
    where = np.clip(np.digitize(top1, BINS) - 1, 0, len(BINS) - 2)
    return [
        {
            "from": round(float(BINS[i]), 1),
            "to": round(float(BINS[i + 1]), 1),
            "tokens": int((where == i).sum()),
            "mean_top1": float(top1[where == i].mean()),
            "match_rate": float(matched[where == i].mean()),
        }
        for i in range(len(BINS) - 1)
        if (where == i).any()
    ]


def match_log_loss(bits: list[Bits]) -> float:
    """Mean binary log loss of the top-1 probability as a forecast of a match."""
    top1, matched = (np.concatenate([getattr(b, name) for b in bits]) for name in ("top1", "matched"))
    forecast = np.clip(np.where(matched, top1, 1 - top1), 1e-4, 1)
    return float(-np.log(forecast).mean())


def fit_temperature(draft, samples: list[Sample]) -> float:
    """The temperature whose top-1 probabilities forecast matches best on ``samples``."""
    grid = np.arange(0.7, 1.41, 0.1)
    losses = [match_log_loss(agreement_bits(draft, samples, float(t))) for t in grid]
    return round(float(grid[int(np.argmin(losses))]), 2)
