"""Everything that decides what a training ends with. No torch here: numbers out of range are refused before that."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from gammatune.errors import UserError

RECIPES = Path(__file__).with_name("recipes.yaml")  # per pair, what differs from the defaults below
KINDS = ("chat", "translation", "summarization", "qa", "math", "rag")


def even_shares() -> dict[str, float]:
    """Prompts of each kind, as parts of all. A document costs the target many tokens, so kinds with documents get fewer."""
    return {"chat": 0.28, "translation": 0.2, "summarization": 0.08, "qa": 0.18, "math": 0.2, "rag": 0.06}


@dataclass(frozen=True)
class Recipe:
    """One training. The defaults suit SmolLM2-135M on two CPU cores; RECIPES holds what other pairs need."""

    # Stage 1 and 2: prompts and the target's answers
    tokens: int = 1_000_000  # that the target answers for training, at least
    answer_tokens: int = 128  # longest answer
    text_tokens: int = 1024  # longest prompt with its answer; prompts that leave no room are dropped
    shard_prompts: int = 192  # conversations of a shard, all kinds mixed; a killed process makes its last shard again
    held_out: int = 96  # conversations that no training sees, from templates and texts of their own
    document: tuple[int, int] = (500, 2400)  # characters of a document, at least and about at most
    shares: dict[str, float] = field(default_factory=even_shares)
    # Stage 3: training
    vocabulary: int = 4096  # tokens that the draft proposes, the most frequent ones of the answers
    steps_in_loss: int = 3  # own steps of a position, each fed with what the one before predicted
    epochs: float = 2.0  # passes over all answers
    step_places: int = 1024  # answer tokens of an optimiser's step, padding included
    rate: float = 1e-3  # highest learning rate
    warmup: float = 0.04  # first part of the training, in which the rate grows
    weight_decay: float = 0.01
    clip: float = 1.0  # longest gradient
    token_weight: float = 1.0  # of the cross-entropy in the loss
    feature_weight: float = 0.5  # of the smooth L1 distance between normed features
    hard: float = 0.5  # share of the cross-entropy to the target's token; the rest to its distribution
    align_first: int = 10  # a token counts in later own steps while the draft ranks it among so many, at the start
    align_last: int = 3  # and at the end
    seed: int = 0

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                raise UserError(f"{name}={value} of a training must be from {low:,} to {high:,}.")
        if set(self.shares) != set(KINDS) or min(self.shares.values()) < 0 or not sum(self.shares.values()):
            raise UserError(f"shares={self.shares} must give each of {', '.join(KINDS)} a part of 0 or more.")
        if self.align_last > self.align_first:
            raise UserError(f"align_last={self.align_last} must be at most align_first={self.align_first}.")

    @property
    def teaching(self) -> dict:
        """What the target's answers depend on: shards of another seed or answer length are no shards of this training."""
        names = ("answer_tokens", "text_tokens", "shard_prompts", "held_out", "document", "shares", "seed")
        return {name: asdict(self)[name] for name in names}


#: the range of each number
LIMITS = {
    "tokens": (1, 2**31 - 1),
    "answer_tokens": (2, 8192),
    "text_tokens": (8, 131_072),
    "shard_prompts": (1, 100_000),
    "held_out": (1, 100_000),
    "vocabulary": (2, 2**24),
    "steps_in_loss": (1, 8),
    "epochs": (0.01, 1000),
    "step_places": (8, 2**31 - 1),
    "rate": (1e-8, 1.0),
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "clip": (1e-6, 1e6),
    "token_weight": (0.0, 100.0),
    "feature_weight": (0.0, 100.0),
    "hard": (0.0, 1.0),
    "align_first": (1, 10**6),
    "align_last": (1, 10**6),
    "seed": (0, 2**63 - 1),
}


def recipe_for(pair: str, **changes) -> Recipe:
    """The recipe of a pair by its name, with `changes` that are not None. Raises UserError for a number out of range."""
    own = yaml.safe_load(RECIPES.read_text("utf-8")).get(pair, {})
    known = {each.name for each in fields(Recipe)}
    assert set(own) <= known, f"{RECIPES} has settings that no recipe has"
    return replace(Recipe(), **(own | {name: value for name, value in changes.items() if value is not None}))
