"""Models that are tables: logits from a hash of the prefix. The decoding loop, traces and replay run on them in no time."""

import random
from functools import lru_cache

import torch

from gammatune.decoding.loop import Engine
from gammatune.drafters.base import Drafter, Workplace
from gammatune.drafters.model import DraftModel
from gammatune.models.pair import Pair
from gammatune.models.tiny import ByteTokenizer
from gammatune.runtimes.device import Device

CPU = torch.device("cpu")
VOCAB = 40
ENDS = (9, 17)  # two tokens of forty, so that ends are common


@lru_cache(maxsize=100_000)
def draw_logits(key: int, vocab_size: int) -> torch.Tensor:
    """[V], the same for equal keys."""
    return 2.0 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(key & 0x7FFFFFFF))


class TableModel:
    """`Model` (gammatune.runtimes.base). Two of one seed are target and draft.

    agreement: how often its logits are the table's own; elsewhere they are others. memory: last tokens that the logits
    depend on, None for all; with few, texts soon repeat themselves. rows: the ids that its LM head has, None for all.
    """

    takes_masks = records_graphs = False
    dtype = torch.float32

    def __init__(self, vocab_size: int = VOCAB, seed: int = 0, agreement=1.0, memory: int | None = None, rows=None):
        self.table = (vocab_size, seed, agreement, memory)
        self.rows = rows
        self.vocab_size = vocab_size if rows is None else len(rows)
        self.reset()

    @property
    def length(self) -> int:
        return len(self.text)

    def reset(self) -> None:
        self.text: list[int] = []

    def forward(self, tokens: torch.Tensor, keep: int, positions=None, mask=None) -> torch.Tensor:
        self.text += tokens.tolist()
        ends = range(self.length - keep + 1, self.length + 1)
        logits = torch.stack([self.look_up(self.text[:end]) for end in ends])
        return logits if self.rows is None else logits[:, self.rows]

    def look_up(self, prefix: list[int]) -> torch.Tensor:
        """Logits [V] after a prefix."""
        vocab_size, seed, agreement, memory = self.table
        key = hash((seed, *prefix[-memory if memory else 0 :]))
        differs = random.Random(key).random() >= agreement
        return draw_logits(key + 1 if differs else key, vocab_size)

    def crop(self, length: int) -> None:
        del self.text[length:]

    def warm(self, counts, context: int, keep: int | None = None) -> None:
        """Nothing to prepare."""


def table_pair(vocab_size: int = VOCAB, ends: tuple[int, ...] = ENDS, context: int = 512, rows=None) -> Pair:
    """What the loop asks of a pair; it has no models."""
    return Pair(
        "table",
        None,
        None,
        ByteTokenizer(vocab_size),
        "plain",
        CPU,
        torch.float32,
        ends,
        context,
        vocab_size,
        draft_ids=rows,
    )


def table_engine(
    drafter: Drafter | None = None, agreement=0.7, seed=0, memory=None, head: int | None = None, **pair
) -> Engine:
    """A pair of tables with a drafter (None: the draft model). head: rows of the draft's LM head, None for all."""
    vocab_size = pair.get("vocab_size", VOCAB)
    rows = (
        None if head is None else torch.randperm(vocab_size, generator=torch.Generator().manual_seed(1))[:head].sort().values
    )
    pair, drafter = table_pair(rows=rows, **pair), drafter or DraftModel()
    target = TableModel(vocab_size, seed, memory=memory)
    draft = TableModel(vocab_size, seed, agreement, memory, rows) if drafter.needs_draft_model else None
    device, ends = Device(CPU), frozenset(pair.eos_ids)
    drafter.attach(Workplace(device, vocab_size, ends, draft, rows))
    return Engine(pair, target, drafter, device, "eager", ends)


def draw_prompt(seed: int, length: int = 6, vocab_size: int = VOCAB) -> list[int]:
    return random.Random(seed).choices(range(4, vocab_size), k=length)


def own_answer(engine: Engine, prompt: list[int], budget: int) -> list[int]:
    """The referee: the table's best token after each prefix, one by one."""
    text = list(prompt)
    while len(text) < len(prompt) + budget and (len(text) == len(prompt) or text[-1] not in engine.ends):
        text.append(int(engine.target.look_up(text).argmax()))
    return text[len(prompt) :]
