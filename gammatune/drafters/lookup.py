"""Prompt lookup: propose what followed the last n tokens where they occurred before.

After apoorvumang/prompt-lookup-decoding and transformers' PromptLookupCandidateGenerator: the longest n first, and of
several places the earliest, as in both. Proposals depend on where the block starts: a longer text may match elsewhere.
"""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.drafters.base import Drafter
from gammatune.errors import UserError
from gammatune.records import Block, Proposal


@dataclass
class Lookup(Drafter):
    """Draft-model-free: costs no forward, has no signals, and proposes nothing where nothing matches."""

    name: ClassVar[str] = "lookup"
    title: ClassVar[str] = "prompt lookup"

    longest: int = 3  # tokens at the end of the text that must occur before; tried from here
    shortest: int = 1  # down to here

    def __post_init__(self):
        if not 1 <= self.shortest <= self.longest:
            raise UserError(
                f"drafter.lookup.shortest={self.shortest} and drafter.lookup.longest={self.longest} are out of range: "
                "choose whole numbers with 1 <= shortest <= longest."
            )

    def begin(self, prompt: list[int], sampler) -> None:
        self.indexed = 0  # tokens of the text that are in `places`
        self.places: dict[tuple, int] = {}  # n-gram -> place after its first occurrence
        self.commit(prompt)

    def commit(self, text: list[int]) -> None:
        """Index the n-grams that the new tokens complete; those that end the text have nothing after them yet."""
        for end in range(self.indexed + 1, len(text) + 1):
            for n in range(self.shortest, min(self.longest, end) + 1):
                self.places.setdefault(tuple(text[end - n : end]), end)
        self.indexed = len(text)

    def propose(self, text: list[int], block: Block) -> Proposal:
        following = self.find(text)
        for token in text[following : following + block.limit]:
            if not block.add(token):
                break
        return Proposal(self.workplace.device.upload(text[following : following + block.drafted]))

    def find(self, text: list[int]) -> int:
        """Where the text went on after an earlier occurrence of its last tokens; its length where there is none."""
        for n in range(min(self.longest, len(text)), self.shortest - 1, -1):
            place = self.places[tuple(text[-n:])]
            if place < len(text):
                return place
        return len(text)
