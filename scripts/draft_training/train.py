"""Distillation: the draft learns what the target finds likely, from stored samples; a run that was cut goes on exactly."""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import LlamaForCausalLM

from gammatune.errors import UserError
from gammatune.models.load import first_line

from .student import soft_loss, start_draft
from .teacher import TOP

PREFIX = 20  # the chat template's constant system message needs no training


@dataclass
class Recipe:
    """Everything that determines the weights, the samples aside."""

    sources: list[int] = field(default_factory=lambda: [0, 1, 29])  # the target layer that each layer starts as
    intermediate: int = 1344  # MLP neurons
    tokens: int = 5_500_000  # positions trained in all, padding included
    step_tokens: int = 6144
    rate: float = 1.5e-3  # highest learning rate
    warmup: int = 20  # steps
    decay: float = 0.6  # last part of the training, over which the rate falls to zero
    hard: float = 0.5  # share of the loss on the target's first choice; the rest on its TOP, renormalised
    prompt_weight: float = 0.25  # of a prompt's positions
    article_weight: float = 0.5  # of sampled answers
    copy_every: int = 8  # steps, in the first half, between two that train copying
    seed: int = 0


@dataclass
class Sample:
    """A text of n tokens, and what is to come after each but the last."""

    ids: torch.Tensor  # [n]
    top_ids: torch.Tensor  # [n - 1, TOP]
    shares: torch.Tensor  # [n - 1, TOP]: weight of each in the loss


@dataclass
class State:
    """Where a run is."""

    step: int = 0
    batches: int = 0  # taken from the stream of samples
    tokens: int = 0
    loss: float = 0.0  # of the last step, per unit of weight
    seconds: float = 0.0


def read_sample(row: dict, recipe: Recipe) -> Sample:
    """A stored row (see teacher.py) as training takes it."""
    top_ids, soft = (torch.from_numpy(row[name]).view(-1, TOP) for name in ("top_ids", "top_p"))
    shares = (1 - recipe.hard) * soft.float() / soft.float().sum(1, keepdim=True)
    shares[:, 0] += recipe.hard
    shares *= recipe.article_weight if row["kind"] == "article" else 1.0
    shares[: row["prompt"] - 1] *= recipe.prompt_weight
    shares[:PREFIX] = 0.0
    return Sample(torch.from_numpy(row["ids"]).long(), top_ids.long(), shares)


def make_copying(samples: list[Sample], width: int, rng: random.Random) -> Sample:
    """A span, another, and the first again, half of them shuffled. Only the repetition is trained, on its own tokens."""
    spans = [rng.choice(samples).ids[PREFIX:][:width].tolist() for _ in range(2)]
    if rng.random() < 0.5:
        spans = [rng.sample(span, len(span)) for span in spans]
    ids = torch.tensor([*spans[0], *spans[1], *spans[0]])
    shares = torch.zeros(len(ids) - 1, TOP)
    shares[len(spans[0]) + len(spans[1]) + 2 :, 0] = 1
    return Sample(ids, ids[1:, None].expand(-1, TOP), shares)


def stream_rows(sizes: list[int], recipe: Recipe) -> Iterator[list[int]]:
    """Endless groups of rows of similar size, about step_tokens when padded, in another order every epoch."""
    for epoch in count():
        rng = random.Random(f"{recipe.seed}/{epoch}")
        groups = [[]]
        for row in sorted(range(len(sizes)), key=lambda row: sizes[row] * rng.uniform(0.9, 1.1)):
            if groups[-1] and (len(groups[-1]) + 1) * sizes[row] > recipe.step_tokens:
                groups.append([])
            groups[-1].append(row)
        yield from rng.sample(groups, len(groups))


class Training:
    """One run, in `folder`: checkpoint.pt and log.jsonl."""

    def __init__(self, target: LlamaForCausalLM, samples: Dataset, folder: Path, recipe: Recipe):
        self.samples, self.folder, self.recipe, self.device = samples, folder, recipe, target.device.type
        self.draft = start_draft(target, recipe.sources, recipe.intermediate)
        weights = [parameter for parameter in self.draft.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.state = State()

    def run(self, save_every: int) -> LlamaForCausalLM:
        """Train until recipe.tokens are reached; a checkpoint and a line of log every `save_every` steps and at the end."""
        self.resume()
        state, started = self.state, time.perf_counter() - self.state.seconds
        rows = islice(stream_rows(self.samples["size"], self.recipe), state.batches, None)
        with tqdm(total=self.recipe.tokens, initial=state.tokens, unit="token", unit_scale=True, disable=None) as bar:
            while state.tokens < self.recipe.tokens:
                self.train_step(rows)
                state.seconds = time.perf_counter() - started
                bar.update(state.tokens - bar.n)
                if state.step % save_every == 0 or state.tokens >= self.recipe.tokens:
                    self.save()
        return self.draft

    def train_step(self, rows: Iterator[list[int]]) -> None:
        recipe, state = self.recipe, self.state
        done = state.tokens / recipe.tokens
        rng = random.Random(f"{recipe.seed}-{state.step}")  # of the step alone, so that a resumed run draws the same
        if done < 0.5 and state.step % recipe.copy_every == 1:
            width = rng.randint(60, 160)
            known = self.read(rng.choices(range(len(self.samples)), k=16))
            samples = [make_copying(known, width, rng) for _ in range(max(1, recipe.step_tokens // (3 * width)))]
        else:
            samples, state.batches = self.read(next(rows)), state.batches + 1
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (state.step + 1) / recipe.warmup, (1 - done) / recipe.decay)
        self.update(samples)
        state.step += 1

    def update(self, samples: list[Sample]) -> None:
        """One step of the optimiser on the positions that have a weight."""
        ids = torch.nn.utils.rnn.pad_sequence([sample.ids[:-1] for sample in samples], batch_first=True).to(self.device)
        used = [sample.shares.sum(1) > 0 for sample in samples]
        mask = torch.nn.utils.rnn.pad_sequence(used, batch_first=True).to(self.device)
        top_ids, shares = (
            torch.cat([getattr(sample, name)[kept] for sample, kept in zip(samples, used, strict=True)]).to(self.device)
            for name in ("top_ids", "shares")
        )
        with torch.autocast(self.device, torch.bfloat16):
            # Nothing looks to its right, so padding there needs no attention mask
            hidden = self.draft.model(ids, use_cache=False).last_hidden_state[mask]
            loss = soft_loss(self.draft.lm_head.weight, hidden, top_ids, shares) / shares.sum().clamp_min(1.0)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        self.optimiser.step()
        self.state.tokens, self.state.loss = self.state.tokens + ids.numel(), loss.item()

    def read(self, rows: list[int]) -> list[Sample]:
        return [read_sample(self.samples[row], self.recipe) for row in rows]

    def resume(self) -> None:
        """Continue where `save` left off. Raises UserError for a checkpoint that is damaged or of another recipe."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)  # a pickle must not run anything
            self.draft.model.load_state_dict(saved["draft"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.state = State(**saved["state"])
        except Exception as error:  # of pickle, zip and torch, each with its own
            raise UserError(
                f"{path} cannot be continued ({first_line(error)}): give the recipe that it was made with, or start another "
                "with --run NAME."
            ) from error

    def save(self) -> None:
        """What `resume` needs, and a line of log."""
        partial = self.folder / "checkpoint.partial"
        saved = {"draft": self.draft.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(saved | {"state": asdict(self.state)}, partial)
        partial.replace(self.folder / "checkpoint.pt")
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(asdict(self.state)) + "\n")
