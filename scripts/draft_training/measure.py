"""Greedy acceptance of a draft, exactly, from where its choice agrees with the target's own text."""

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

GAMMA = 5


@torch.inference_mode()
def compare_tokens(draft: LlamaForCausalLM, samples: Dataset, temperature: float = 1.0) -> pd.DataFrame:
    """A row per answer token: sample, kind, matched (the draft's choice is the target's), top1 (its probability)."""
    frames = []
    for number, row in enumerate(samples):
        ids, prompt = torch.from_numpy(row["ids"]).long().to(draft.device), int(row["prompt"])
        states, wanted = draft.model(ids[None, :-1]).last_hidden_state[0, prompt - 1 :], ids[prompt:]
        for part, goal in zip(states.split(256), wanted.split(256), strict=True):
            best = (draft.lm_head(part).float() / temperature).softmax(-1).max(-1)
            found = {"matched": (best.indices == goal).cpu().numpy(), "top1": best.values.cpu().numpy()}
            frames.append(pd.DataFrame({"sample": number, "kind": str(row["kind"]), **found}))
    return pd.concat(frames, ignore_index=True)


def count_rounds(matched: np.ndarray, gamma: int = GAMMA) -> int:
    """Rounds that a text takes; each accepts the leading matches of its gamma tokens, and the target adds its own."""
    rounds, position = 0, 0
    while position < len(matched):
        block = matched[position : position + gamma]
        position += 1 + (len(block) if block.all() else int(block.argmin()))
        rounds += 1
    return rounds


def summarise(tokens: pd.DataFrame) -> dict:
    """Mean tokens per round and agreement per kind and over all; match rate by tenth of top1."""
    rounds = tokens.groupby(["kind", "sample"])["matched"].apply(lambda matched: count_rounds(matched.to_numpy()))
    tasks = {}
    for kind in ["overall", *sorted(tokens["kind"].unique())]:
        part, taken = (tokens, rounds) if kind == "overall" else (tokens[tokens["kind"] == kind], rounds[kind])
        counts = {"tokens": len(part), "rounds": int(taken.sum()), "samples": len(taken)}
        tasks[kind] = {"mean_emitted": len(part) / counts["rounds"], "agreement": float(part["matched"].mean()), **counts}
    tenth = np.minimum((tokens["top1"] * 10).astype(int), 9)
    rows = tokens.groupby(tenth).agg(tokens=("top1", "size"), mean_top1=("top1", "mean"), match_rate=("matched", "mean"))
    reliability = [{"from": low / 10, "to": (low + 1) / 10, **row} for low, row in rows.to_dict("index").items()]
    return {"gamma": GAMMA, "tasks": tasks, "reliability": reliability}


def fit_temperature(draft: LlamaForCausalLM, samples: Dataset) -> float:
    """The temperature whose top1 forecasts matches best: least binary log loss."""
    losses = {}
    for temperature in np.arange(0.7, 1.41, 0.1).round(1):
        tokens = compare_tokens(draft, samples, float(temperature))
        forecast = tokens["top1"].where(tokens["matched"], 1 - tokens["top1"])
        losses[float(temperature)] = -np.log(forecast.clip(lower=1e-4)).mean()
    return min(losses, key=losses.get)


def describe(summary: dict) -> str:
    """Both tables as the model card shows them."""
    tasks = pd.DataFrame(summary["tasks"]).T.astype({"tokens": int, "rounds": int, "samples": int})
    parts = (tasks.round(3), pd.DataFrame(summary["reliability"]).round(3).set_index("from"))
    return "\n\n".join(part.to_markdown() for part in parts)
