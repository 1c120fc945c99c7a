"""Distillation of the draft on teacher shards, on single-threaded data-parallel CPU workers or on one GPU."""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from .batches import Recipe, batch_stream, copy_samples, make_batch
from .measure import agreement_bits, summarise
from .student import Draft, Head, export
from .teacher import Sample, load_samples


def optimisers(draft: Draft, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices (or AdamW for all), AdamW for the norms."""
    matrices = [p for p in draft.parameters() if p.ndim == 2]
    vectors = [p for p in draft.parameters() if p.ndim == 1]
    if recipe.optimiser == "muon":
        muon = torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(vectors, lr=recipe.rate, weight_decay=0.0)]
    return [torch.optim.AdamW(matrices + vectors, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)]


def average_gradients(draft: Draft) -> None:
    """Sum gradients over the workers as one flat message."""
    if not dist.is_initialized():
        return
    parameters = list(draft.parameters())
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


class Trainer:
    """One worker's training loop; worker 0 measures on the dev set and writes weights."""

    def __init__(self, target: Path, shards: Path, output: Path, recipe: Recipe):
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.recipe, self.output, self.shards = recipe, output, shards
        torch.manual_seed(recipe.seed + self.rank)
        self.draft = Draft(target, recipe.shape, recipe.device)
        self.optimisers = optimisers(self.draft, recipe)
        self.dev = [s for p in sorted(shards.glob("dev-*.pt")) for s in load_samples(p)]
        self.loaded: set[Path] = set()
        self.samples: list[Sample] = []
        self.head: Head | None = None
        self.tokens, self.started = 0, time.time()
        self.resume()

    def refresh(self) -> None:
        """Load shards written since the last call; each worker keeps every ``world``-th sample."""
        for path in sorted(set(self.shards.glob("train-*.pt")) - self.loaded):
            self.loaded.add(path)
            self.samples += load_samples(path)[self.rank :: self.world]
        counts = np.bincount(np.concatenate([s.top_ids[:, 0] for s in self.samples]), minlength=49152)
        frequent = torch.from_numpy(counts.argsort()[::-1][: self.recipe.frequent].copy())
        self.head = Head(frequent.to(self.recipe.device))

    def resume(self) -> None:
        """Continue from the last checkpoint, if this run has one."""
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.recipe.device)
        self.draft.load_state_dict(state["draft"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.tokens, self.started = state["tokens"], time.time() - state["seconds"]

    def checkpoint(self) -> None:
        """Write everything that :meth:`resume` needs."""
        state = {
            "draft": self.draft.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "tokens": self.tokens,
            "seconds": time.time() - self.started,
        }
        torch.save(state, self.output / "checkpoint.tmp")
        (self.output / "checkpoint.tmp").rename(self.output / "checkpoint.pt")

    def progress(self) -> float:
        """Fraction of the time budget used, agreed on by all workers."""
        used = torch.tensor((time.time() - self.started) / 60 / self.recipe.minutes)
        if dist.is_initialized():
            dist.broadcast(used, 0)
        return float(used)

    def set_rate(self, step: int, fraction: float) -> None:
        """Linear warm-up, then a flat stretch, then a linear decay to zero over the last 60% of the time."""
        scale = min(1.0, (step + 1) / self.recipe.warmup, max(0.0, 1 - fraction) / 0.6)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.recipe.rate * scale

    def step(self, samples: list[Sample]) -> float:
        """One optimiser step; returns this worker's mean loss per unit of weight."""
        batch = make_batch(samples, self.recipe)
        hidden = self.draft(batch.ids).flatten(0, 1)[batch.positions]
        weight = torch.stack((batch.shares.sum(), torch.tensor(float(batch.ids.numel()), device=batch.ids.device)))
        local = float(weight[0])
        if dist.is_initialized():
            dist.all_reduce(weight)
        loss = self.head.loss(self.draft, hidden, batch.top_ids, batch.shares) / weight[0]
        loss.backward()
        average_gradients(self.draft)
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.tokens += int(weight[1])
        return float(loss) * float(weight[0]) / local

    def run(self) -> None:
        """Train until the time budget is used, picking up new shards and checkpointing on the way."""
        self.refresh()
        rng = random.Random(self.recipe.seed + self.rank)
        size = self.recipe.step_tokens // self.world
        stream = batch_stream(self.samples, size, rng)
        smooth, measured, step = None, time.time(), 0
        bar = tqdm(disable=self.rank > 0, mininterval=10, desc="train")
        for step in range(self.recipe.max_steps):
            fraction = self.progress()
            if fraction >= 1:
                break
            self.set_rate(step, fraction)
            copying = fraction < 0.5 and step % self.recipe.copy_every == 1
            loss = self.step(copy_samples(self.samples, size, rng) if copying else next(stream))
            if copying:
                continue
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            bar.update()
            bar.set_postfix(loss=f"{smooth:.3f}", mtok=f"{self.tokens / 1e6:.2f}", done=f"{fraction:.0%}")
            if time.time() - measured > self.recipe.report_seconds:
                self.report(step, smooth)
                self.refresh()
                stream = batch_stream(self.samples, size, rng)
                measured = time.time()
        self.report(step, smooth or math.nan)

    def report(self, step: int, loss: float) -> None:
        """Worker 0 logs the dev result and writes the weights."""
        if self.rank:
            return
        minutes = (time.time() - self.started) / 60
        line = {"step": step, "minutes": round(minutes, 1), "tokens": self.tokens, "loss": round(loss, 4)}
        scores = summarise(agreement_bits(self.draft, self.dev))["tasks"]
        line |= {task: round(row["mean_emitted"], 3) for task, row in scores.items()}
        line |= {"agreement": round(scores["overall"]["agreement"], 4)}
        self.output.mkdir(parents=True, exist_ok=True)
        export(self.draft, self.output)
        self.checkpoint()
        with (self.output / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))


def worker(rank: int, world: int, target: Path, shards: Path, output: Path, recipe: Recipe) -> None:
    """Entry point of one data-parallel process."""
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29517")
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world)
    Trainer(target, shards, output, recipe).run()
    if world > 1:
        dist.destroy_process_group()


def train(target: Path, shards: Path, output: Path, recipe: Recipe, workers: int) -> None:
    """Run the training with ``workers`` processes."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    arguments = (workers, target, shards, output, recipe)
    if workers == 1:
        worker(0, *arguments)
    else:
        torch.multiprocessing.spawn(worker, arguments, nprocs=workers)
