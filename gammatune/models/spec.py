"""What a model pair is, as a typed config. No torch here: a typo is refused before anything heavy is imported."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from gammatune.errors import UserError

SOURCES = ("hub", "embedded", "tiny-random")
DTYPES = ("fp32", "fp16", "bf16")
CHAT_TEMPLATES = ("tokenizer", "vicuna", "llama-2", "plain")
WEIGHTS = ("checkpoint", "random")
QUANTIZATIONS = (None, "int8")


@dataclass
class Shape:
    """The sizes of a Llama, enough to count its bytes or to build it with random weights without a checkpoint."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    vocab_size: int = MISSING
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    head_dim: int | None = None


@dataclass
class Checkpoint:
    """One model of a pair: where it comes from and its published shape.

    id: hub repository. revision: commit or branch, only where known. path: a local folder that replaces the hub.
    quantization: null or int8 (needs the [int8] extra). gated: whether the hub asks for a licence first.
    head: of a draft only, how many tokens it can say: the most frequent ones, null for all. ranking: of a draft only, a .npy
    file with token ids by falling frequency; null takes token_ranking.npy in the draft's folder.
    """

    id: str = MISSING
    revision: str | None = None
    path: str | None = None
    quantization: str | None = None
    gated: bool = False
    head: int | None = None
    ranking: str | None = None
    shape: Shape = field(default_factory=Shape)


@dataclass
class PairConfig:
    """A target and its draft. dtype counts on a GPU, cpu_dtype on a CPU."""

    name: str = MISSING
    source: str = "hub"
    target: Checkpoint = field(default_factory=Checkpoint)
    draft: Checkpoint = field(default_factory=Checkpoint)
    dtype: str = "fp16"
    cpu_dtype: str = "fp32"
    chat_template: str = "tokenizer"
    weights: str = "checkpoint"

    def __post_init__(self):
        one_of("model_pair.source", self.source, SOURCES)
        one_of("model_pair.dtype", self.dtype, DTYPES)
        one_of("model_pair.cpu_dtype", self.cpu_dtype, DTYPES)
        one_of("model_pair.chat_template", self.chat_template, CHAT_TEMPLATES)
        one_of("model_pair.weights", self.weights, WEIGHTS)
        for role in (self.target, self.draft):
            one_of("model_pair.*.quantization", role.quantization, QUANTIZATIONS)
        refuse_heads(self.target, self.draft)


def refuse_heads(target: Checkpoint, draft: Checkpoint) -> None:
    """Raises UserError for a head without rows, and for a reduced head anywhere but on the draft."""
    for key in ("head", "ranking"):
        if getattr(target, key) is not None:
            raise UserError(
                f"model_pair.target.{key}={getattr(target, key)} would change the answers: set it to null, and "
                f"model_pair.draft.{key} for a smaller draft."
            )
    if draft.head is not None and draft.head < 1:
        raise UserError(f"model_pair.draft.head={draft.head} must be 1 or more (or null for all tokens).")


def one_of(key: str, value, choices) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not known: choose one of {', '.join(str(c) for c in choices)}.")
