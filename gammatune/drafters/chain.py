"""Drafters that step: one forward per proposed token, each with what the drafter reports about it."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch

from gammatune.drafters.base import Drafter
from gammatune.drafters.signals import measure_signals, name_tokens
from gammatune.records import Block, Proposal, Signals
from gammatune.runtimes.finite import nonfinite


@dataclass
class ChainDrafter(Drafter):
    """Proposes a chain of tokens by a model of its own, `workplace.model`, whose LM head has the rows `workplace.ids`."""

    signals: ClassVar[bool] = True
    forwards_per_token: ClassVar[int] = 1

    def begin(self, prompt: list[int], sampler) -> None:
        self.model, self.ids, self.device = self.workplace.model, self.workplace.ids, self.workplace.device
        self.sampler, self.prompt_tokens = sampler, len(prompt)
        self.model.reset()

    def read(self, text: list[int], block: Block) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read what is new of the text: the next token's logits [1, N], and `Proposal.caught_up`."""
        raise NotImplementedError

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Read the token [1] just proposed: the next one's logits [1, N]."""
        raise NotImplementedError

    def propose(self, text: list[int], block: Block) -> Proposal:
        if not block.limit or not self.unread(text):
            return Proposal(self.device.upload([]))
        logits, caught_up = self.read(text, block)
        tokens, rows, peaks = [], [], []
        while True:
            q = self.sampler.distribution(logits, text, tokens)
            row = self.sampler.draw(q)  # [1]
            token = name_tokens(row, self.ids)
            tokens.append(token)
            rows.append(q)
            peaks.append(self.sampler.peaks(logits, q))
            if not block.add(*self.report(block, logits, q, row, token, len(text))):
                break
            logits = self.step(token)
        k = block.drafted  # one less than were drawn where the policy dropped the last
        q = self.sampler.spread(rows[:k], self.ids, self.workplace.vocab_size) if k else None
        return Proposal(torch.cat(tokens)[:k], q, forwards=len(tokens), peaks=torch.cat(peaks), caught_up=caught_up)

    def report(self, block: Block, logits, q, row, token, context: int) -> tuple[int | None, Signals | None]:
        """The token and its signals for `block.add`, in at most one read of the device.

        Where no policy watches, nothing is waited for: on CUDA the token stays there, and the block may run on past a
        drafted end of sequence, which is found after verification. A policy never sees signals that are no numbers.
        """
        if not block.watched:
            return (self.device.read(token)[0] if block.named or self.device.reads_are_free else None), None
        measured = measure_signals(logits)[0]  # [3]
        chosen = measured[:1] if self.sampler.greedy else q[0, row]
        # ids are exact in fp32 up to 2^24, so the token rides along with its signals
        top1, entropy, margin, chosen, token = self.device.read(torch.cat([measured, chosen, token.float()]))
        if not isfinite(top1):
            raise nonfinite("draft", context - self.prompt_tokens + block.drafted, self.model.dtype)
        return int(token), Signals.rounded(block.drafted, top1, entropy, margin, chosen)
