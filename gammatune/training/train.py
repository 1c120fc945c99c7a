"""Stage 3: a feature draft learns to follow the target over several own steps; a training that was cut goes on exactly."""

import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gammatune.errors import UserError
from gammatune.files import replacing, write_text
from gammatune.models.feature_draft import FeatureDraft
from gammatune.models.load import first_line
from gammatune.training.chain import Batch, make_batch, own_steps, still_aligned
from gammatune.training.evaluate import evaluate
from gammatune.training.recipe import Recipe
from gammatune.training.shards import Answers

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
EVALUATIONS = 8  # of a whole training, evenly spread
SAVE_S = 120.0  # seconds between checkpoints
TEXT_PER_PLACE = 16  # text positions of a step for each of its answer tokens, at most


@dataclass
class Loss:
    """What a batch is trained on."""

    total: torch.Tensor  # the scalar whose gradient is taken
    tokens: float  # cross-entropy per counted place, summed over own steps
    features: float  # smooth L1 distance, likewise


@dataclass
class State:
    """Where a training is. Nothing draws from torch's generator, so this and the weights are all that a resume needs."""

    step: int = 0  # of the optimiser
    batches: int = 0  # taken from the stream of texts
    places: int = 0  # answer tokens trained on
    seconds: float = 0.0
    steps: int = 0  # since the last evaluation
    token_loss: float = 0.0  # summed over those
    feature_loss: float = 0.0
    log: list[dict] = field(default_factory=list)  # a line per evaluation


class Training:
    """One training in `folder`, of the answers' target."""

    def __init__(self, draft: FeatureDraft, answers: Answers, held_out: Answers, recipe: Recipe, folder: Path):
        self.draft, self.answers, self.held_out, self.recipe, self.folder = draft, answers, held_out, recipe, folder
        self.device = draft.fuse.weight.device
        self.columns = columns_of(draft)
        # Of a vector, decay would pull an RMS norm's gains to zero
        matrices, vectors = (
            [weight for weight in draft.parameters() if weight.requires_grad and (weight.dim() > 1) == wide]
            for wide in (True, False)
        )
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))
        self.state = State()
        self.goal = max(1, round(recipe.epochs * answers.answer_tokens))

    @property
    def done(self) -> float:
        """Part of the training that is over, 0 to 1."""
        return min(1.0, self.state.places / self.goal)

    def run(self, deadline: float = math.inf) -> bool:
        """Train to the end, or until `deadline` by time.monotonic; returns whether the end was reached."""
        self.resume()
        state, saved, started = self.state, time.monotonic(), time.monotonic() - self.state.seconds
        batches = islice(stream_batches(self.answers.sizes, self.answers.prompts, self.recipe), state.batches, None)
        with tqdm(
            total=self.goal, initial=state.places, unit="token", unit_scale=True, desc="training", disable=None
        ) as bar:
            if not state.log:
                bar.write(self.evaluate(), file=sys.stderr)
            while self.done < 1 and time.monotonic() < deadline:
                before = self.done
                self.train_step(next(batches))
                state.seconds = time.monotonic() - started
                bar.update(state.places - bar.n)
                if int(self.done * EVALUATIONS) > int(before * EVALUATIONS):
                    bar.write(self.evaluate(), file=sys.stderr)
                    state.seconds = time.monotonic() - started
                    saved = -math.inf  # so that no line of the log is lost
                if time.monotonic() - saved > SAVE_S:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return self.done >= 1

    def train_step(self, rows: list[int]) -> None:
        """One step of the optimiser."""
        recipe, state = self.recipe, self.state
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * scale_rate(self.done, recipe.warmup)
        batch = make_batch([self.answers[row] for row in rows], self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = measure_loss(self.draft, batch, self.columns, recipe, self.done)
        self.optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), recipe.clip)
        self.optimiser.step()
        state.step, state.batches = state.step + 1, state.batches + 1
        state.places += int(batch.counted.sum())
        state.steps, state.token_loss = state.steps + 1, state.token_loss + loss.tokens
        state.feature_loss += loss.features

    def evaluate(self) -> str:
        """Add held-out figures and the mean losses since the last ones to the log; returns the figures in one line."""
        state = self.state
        figures = evaluate(self.draft, self.held_out, self.columns, TEXT_PER_PLACE * self.recipe.step_places)
        place = {"step": state.step, "places": state.places, "done": round(self.done, 4), "seconds": round(state.seconds, 1)}
        if state.steps:
            place |= {name: round(getattr(state, name) / state.steps, 4) for name in ("token_loss", "feature_loss")}
        state.steps, state.token_loss, state.feature_loss = 0, 0.0, 0.0
        state.log.append({**place, **asdict(figures)})
        return f"{self.done:4.0%} of the training: {describe(state.log[-1])}"

    def resume(self) -> None:
        """Go on where `save` left off. Raises UserError for a checkpoint that is damaged or of another draft."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)  # a pickle must not run anything
            self.draft.load_state_dict(saved["draft"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.state = State(**saved["state"])
        except Exception as error:  # of pickle, zip and torch, each with its own
            raise UserError(
                f"{path} cannot be continued ({first_line(error)}): delete it to begin this training again, or choose "
                "another folder with --out FOLDER."
            ) from error

    def save(self) -> None:
        """What `resume` needs, and the log to look at."""
        saved = {"draft": self.draft.state_dict(), "optimiser": self.optimiser.state_dict(), "state": asdict(self.state)}
        with replacing(self.folder / CHECKPOINT) as partial:
            torch.save(saved, partial)
        write_text(self.folder / LOG, "".join(json.dumps(line) + "\n" for line in self.state.log))


def columns_of(draft: FeatureDraft) -> torch.Tensor:
    """The column of each target id [V] in the draft's logits; -1 for one that it cannot propose."""
    vocab_size, device = draft.borrowed.config.vocab_size, draft.fuse.weight.device
    if draft.ids is None:
        return torch.arange(vocab_size, device=device)
    columns = torch.full((vocab_size,), -1, device=device)
    columns[draft.ids.to(device)] = torch.arange(len(draft.ids), device=device)
    return columns


def scale_rate(done: float, warmup: float) -> float:
    """The learning rate as a part of its highest: a line up during the warm-up, then a cosine down to a hundredth."""
    if done < warmup:
        return max(0.01, done / warmup)
    part = (done - warmup) / max(1e-9, 1 - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part))


def anneal(recipe: Recipe, done: float) -> int:
    """Among how many first choices of the draft a token must be to count on in the next own step."""
    return round(recipe.align_first + (recipe.align_last - recipe.align_first) * done)


def measure_loss(draft: FeatureDraft, batch: Batch, columns: torch.Tensor, recipe: Recipe, done: float) -> Loss:
    """The loss of all own steps together, per place of the first one.

    Tokens: cross-entropy over the draft's own ids to the target's token and to the target's distribution there, which
    follows from its feature by its own head. Features: the smooth L1 distance that EAGLE takes, between what the target's
    final norm makes of both, so that a few huge dimensions of the residual stream do not fill the sum.
    """
    with torch.no_grad():
        shares = draft.logits(batch.wanted_features).float().softmax(-1)
        goals = draft.borrowed.norm(batch.wanted_features.to(draft.borrowed.embedding.weight.dtype)).float()
        wanted, most = columns[batch.wanted], anneal(recipe, done)
    tokens = features = torch.zeros((), device=columns.device)
    aligned = torch.ones_like(batch.counted)
    for own in own_steps(draft, batch, recipe.steps_in_loss):
        counted, logits = own.counted & aligned, own.logits.float()
        chances = logits.log_softmax(-1)
        right = chances.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        losses = -recipe.hard * right - (1 - recipe.hard) * (shares * chances).sum(-1)
        # What the draft has no row for, nothing can teach it to propose
        tokens = tokens + losses[counted & (wanted >= 0)].sum()
        normed = draft.borrowed.norm(own.features.to(draft.borrowed.embedding.weight.dtype)).float()
        features = features + F.smooth_l1_loss(normed, goals, reduction="none").mean(-1)[counted].sum()
        with torch.no_grad():
            aligned = still_aligned(aligned, logits, wanted, most)
    places = batch.counted.sum().clamp(min=1)
    tokens, features = tokens / places, features / places
    total = recipe.token_weight * tokens + recipe.feature_weight * features
    return Loss(total, float(tokens.detach()), float(features.detach()))


def stream_batches(sizes: np.ndarray, prompts: np.ndarray, recipe: Recipe) -> Iterator[list[int]]:
    """Endless groups of texts with answers of similar length, then of similar size, in another order every epoch.

    A group is about step_places when its answers are padded; prompts are cheap and bound it only where they are long. The
    order follows from the seed and the epoch alone, so that a resumed training takes the same ones.
    """
    answers, most = sizes - prompts, TEXT_PER_PLACE * recipe.step_places
    for epoch in count():
        rng = random.Random(f"{recipe.seed}/{epoch}")
        # Two buckets to each doubling, with edges that move
        order = [
            (int(2 * math.log2(answer) + rng.random()), size, rng.random())
            for answer, size in zip(answers, sizes, strict=True)
        ]
        groups, longest, longest_text = [[]], 0, 0
        for row in sorted(range(len(sizes)), key=order.__getitem__):
            longest, longest_text = max(longest, answers[row]), max(longest_text, sizes[row])
            rows = len(groups[-1]) + 1
            if rows > 1 and (rows * longest > recipe.step_places or rows * longest_text > most):
                groups.append([])
                longest, longest_text = answers[row], sizes[row]
            groups[-1].append(row)
        yield from rng.sample(groups, len(groups))


def describe(line: dict) -> str:
    """A line of the log in words."""
    agreement = ", ".join(f"{part:.1%}" for part in line["agreement"])
    return f"agreement per own step {agreement}; {line['accepted']:.3f} tokens accepted per round at gamma {line['gamma']}"
