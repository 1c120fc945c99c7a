"""Several drafters: the first in the list that has something to propose makes the block."""

from dataclasses import dataclass, field

from gammatune.drafters.base import Drafter, Workplace, name_drafter
from gammatune.errors import UserError
from gammatune.records import Block, Proposal
from gammatune.traces import StartTrace, take_first


@dataclass
class FirstOf(Drafter):
    """Each block is one drafter's. All follow the text: a draft model that was passed over reads it late, in one feed.

    It has signals where all of them have. Verification is by the distribution of whoever proposed, so it stays lossless.
    """

    drafters: list[Drafter] = field(default_factory=list)

    def __post_init__(self):
        if not self.drafters:
            raise UserError("A list of drafters holds none: name one or more, such as drafter=[suffix,model].")
        self.name = f"[{','.join(name_drafter(drafter) for drafter in self.drafters)}]"

    @property
    def members(self) -> tuple[Drafter, ...]:
        return tuple(self.drafters)

    @property
    def signals(self) -> bool:
        return all(drafter.signals for drafter in self.drafters)

    @property
    def needs_draft_model(self) -> bool:
        return any(drafter.needs_draft_model for drafter in self.drafters)

    @property
    def reads_features(self) -> bool:
        return any(drafter.reads_features for drafter in self.drafters)

    @property
    def forwards_per_token(self) -> int:
        return max(drafter.forwards_per_token for drafter in self.drafters)

    @property
    def rereads(self) -> bool:
        return any(drafter.rereads for drafter in self.drafters)

    def load(self, pair) -> None:
        for drafter in self.drafters:
            drafter.load(pair)

    def attach(self, workplace: Workplace) -> None:
        super().attach(workplace)
        for drafter in self.drafters:
            drafter.attach(workplace)

    @property
    def identity(self) -> dict:
        return {"name": self.name, "members": [drafter.identity for drafter in self.drafters]}

    def begin(self, prompt: list[int], sampler) -> None:
        for drafter in self.drafters:
            drafter.begin(prompt, sampler)

    def propose(self, text: list[int], block: Block) -> Proposal:
        for place, drafter in enumerate(self.drafters):
            proposal = drafter.propose(text, block)
            if block.drafted or block.dropped:  # at least one token was made
                proposal.proposer = place
                return proposal
        return Proposal(self.workplace.device.upload([]))

    def commit(self, text: list[int]) -> None:
        for drafter in self.drafters:
            drafter.commit(text)

    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> StartTrace:
        """Of the members' own traces: a draft model runs once along the answer, however often it would be passed over."""
        traces = [drafter.trace(prompt, answer, budget, depth) for drafter in self.drafters]
        ended = answer[-1] in self.workplace.ends
        return take_first([trace.starts(ended, answer) for trace in traces])
