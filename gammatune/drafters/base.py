"""What proposes tokens: the base of all drafters. Batch size 1."""

from dataclasses import dataclass, fields
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gammatune.errors import UserError
from gammatune.records import SIGNAL_DIGITS, Block, Proposal
from gammatune.traces import SignalColumns, StartTrace, Trace

if TYPE_CHECKING:  # a config with a drafter is checked before torch is imported
    import torch

    from gammatune.models.pair import Pair
    from gammatune.runtimes.base import Model
    from gammatune.runtimes.device import Device


@dataclass
class Workplace:
    """What a drafter is given before its first prompt."""

    device: "Device"
    vocab_size: int  # columns of the target's logits
    ends: frozenset[int]  # ids that end the sequence
    model: "Model | None" = None  # the pair's draft model, where the drafter asked for it
    ids: "torch.Tensor | None" = None  # [N], target ids of the rows of its LM head; None where it has all
    target: "Model | None" = None  # for a drafter that reads its features
    runtime: str = "eager"  # what really runs: "eager" or "compiled"


@dataclass
class Drafter:
    """Base of all drafters; fields are the settings that a config may set."""

    name: ClassVar[str] = ""  # in configs and logs
    title: ClassVar[str] = ""  # in tables and figures
    signals: ClassVar[bool] = False  # whether it reports signals; policies that watch need them
    needs_draft_model: ClassVar[bool] = False  # whether it runs the pair's draft model
    reads_features: ClassVar[bool] = False  # whether it reads the target's features (gammatune.models.feature_draft)
    forwards_per_token: ClassVar[int] = 0  # forward passes of its own that each proposed token costs
    rereads: ClassVar[bool] = False  # whether a block's first step reads anew what the round before had accepted

    def load(self, pair: "Pair") -> None:
        """Called once, while the pair's modules are as transformers made them: read what belongs to the pair."""

    def attach(self, workplace: Workplace) -> None:
        """Called once, before the first prompt."""
        self.workplace = workplace

    @property
    def members(self) -> tuple["Drafter", ...]:
        """Who may make a proposal, in the order that `Proposal.proposer` counts."""
        return (self,)

    @property
    def identity(self) -> dict:
        """What proposals depend on beside the pair; part of a run's hash."""
        return {"name": name_drafter(self)} | {f.name: getattr(self, f.name) for f in fields(self)}

    def begin(self, prompt: list[int], sampler) -> None:
        """A new text. sampler: turns logits into the distributions that tokens are drawn from."""

    def propose(self, text: list[int], block: Block) -> Proposal:
        """Up to `block.limit` tokens to follow the text; `block.add` says after each whether to go on.

        The proposal holds `block.drafted` tokens. It may be empty. A drafter with signals hands `block.add` those of each
        token; in greedy decoding `chosen` is `top1`, as the replay takes it to be.
        """
        raise NotImplementedError

    def unread(self, text: list[int]) -> int:
        """Tokens that the first step after this text reads; 0 for a drafter that takes no forwards."""
        return 0

    def commit(self, text: list[int]) -> None:
        """The text that the round left: roll back to a prefix of it."""

    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> Trace:
        """What would be proposed at each position of a greedy answer; called right after `begin(prompt, greedy sampler)`.

        budget: tokens that the answer was allowed to have. depth: proposed tokens recorded per start, for a drafter with
        signals; without signals all are recorded.
        """
        right, proposed, ended, more, seen, ids = [], [], [], [], [], []
        text = list(prompt)
        for place, token in enumerate(answer):
            block = Block(depth if self.signals else budget, budget - place - 1, self.workplace.ends)
            if self.signals:
                block.keep = lambda signals: seen.append((signals.top1, signals.entropy, signals.margin)) or True
            drafted = self.propose(text, block).tokens.tolist() if block.limit else []
            block.cut(drafted)
            right.append(count_right(drafted, answer[place:]))
            proposed.append(block.drafted)
            ids += drafted[: block.drafted]
            ended.append(block.ended)
            more.append(block.stop == "length")
            text.append(token)
            self.commit(text)
        return StartTrace(
            right=np.array(right, np.int16),
            proposed=np.array(proposed, np.int16),
            ended=np.array(ended, bool),
            more=np.array(more, bool),
            signals=make_columns(np.array(seen).reshape(-1, 3)) if self.signals else None,
            ids=np.array(ids, np.int32),
        )


def count_right(proposed: list[int], answer: list[int]) -> int:
    """How many in a row are the answer's own."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(proposed, answer, strict=False)))


def make_columns(values: np.ndarray) -> SignalColumns:
    """[n, 3] to three columns, rounded as a live policy sees them."""
    return SignalColumns(*np.ascontiguousarray(values.astype(float).round(SIGNAL_DIGITS).T))


def refuse_watching(drafter: Drafter, policy_name: str) -> None:
    """Raises UserError: a policy that watches signals cannot steer a drafter that has none."""
    silent = [name_drafter(member) for member in drafter.members if not member.signals]
    of_whom = f" from {' and '.join(silent)}" if len(drafter.members) > 1 else ""
    raise UserError(
        f"policy={policy_name} stops by the draft's signals, and drafter={name_drafter(drafter)} has none{of_whom}: "
        "choose a policy that plans lengths only, such as fixed or gammatune, or drafter=model."
    )


def name_drafter(drafter: Drafter) -> str:
    """As in configs and logs."""
    return drafter.name or type(drafter).__name__
