"""Which prompts a run answers, as a typed config."""

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from gammatune.errors import UserError

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
CATEGORIES = MT_BENCH_CATEGORIES + TASKS[1:]
SOURCES = ("demo", "specbench")
PINNED = "pinned"


def task_of(category: str) -> str:
    """The task that a category belongs to: mt_bench for its eight categories, else the category itself."""
    return "mt_bench" if category in MT_BENCH_CATEGORIES else category


@dataclass
class TasksConfig:
    """A question set and the part of it to run.

    source: demo (shipped) or specbench. path: a local question file in Spec-Bench's format, for source specbench.
    checksum: what the file's sha256 must be: "pinned" for Spec-Bench as published, null to accept any file (your own
    questions), or 64 hex digits. include: task or category names, empty for all. limit: questions per task, null for
    all; with a seed they are a stratified random subset (equal shares of each category), without one the first of each
    task.
    """

    name: str = MISSING
    source: str = "demo"
    path: str | None = None
    checksum: str | None = PINNED
    include: list[str] = field(default_factory=list)
    limit: int | None = None
    seed: int | None = None

    def __post_init__(self):
        if self.source not in SOURCES:
            raise UserError(f"tasks.source={self.source} is not known: choose one of {', '.join(SOURCES)}.")
        if self.path is not None and self.source != "specbench":
            raise UserError(
                f"tasks.path={self.path} is only read with tasks.source=specbench: set that too, or leave the path out."
            )
        self._check_checksum()
        self._check_selection()

    def _check_checksum(self):
        if self.checksum not in (None, PINNED) and not re.fullmatch("[0-9a-f]{64}", self.checksum):
            raise UserError(f"tasks.checksum={self.checksum} must be pinned, null or a sha256 of 64 lower-case hex digits.")

    def _check_selection(self):
        known = TASKS + MT_BENCH_CATEGORIES
        for name in self.include:
            if name not in known:
                raise UserError(f"tasks.include names {name}, which is no task or category: choose from {', '.join(known)}.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"tasks.limit={self.limit} must be 1 or more (or null for all).")
        if self.seed is not None and self.limit is None:
            raise UserError(
                f"tasks.seed={self.seed} picks a random subset and changes nothing without tasks.limit: set the "
                "limit, or leave the seed out."
            )
