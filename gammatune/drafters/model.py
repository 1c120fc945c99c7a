"""A draft model: one forward per proposed token, with what it reports about each.

The last committed token is never in its cache: whatever the cache lacks of the committed text is fed with the next forward.
So a rejection is a crop, and the hole that a full acceptance leaves (the block's last token was never fed) is filled by a
two-token feed, at no extra forward.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from gammatune.drafters.base import make_columns
from gammatune.drafters.chain import ChainDrafter
from gammatune.drafters.signals import find_best, measure_signals, name_tokens
from gammatune.records import Block
from gammatune.runtimes.finite import nonfinite
from gammatune.traces import MATCH, MISMATCH, TextTrace

CHUNK = 128  # answer positions per traced forward


@dataclass
class DraftModel(ChainDrafter):
    """The pair's draft model (Leviathan et al. 2023, arXiv 2211.17192)."""

    name: ClassVar[str] = "model"
    title: ClassVar[str] = "draft model"
    needs_draft_model: ClassVar[bool] = True

    def begin(self, prompt: list[int], sampler) -> None:
        super().begin(prompt, sampler)
        if len(prompt) > 1:
            self.model.forward(self.device.upload(prompt[:-1]), keep=1)

    def unread(self, text: list[int]) -> int:
        return len(text) - self.model.length

    def read(self, text: list[int], block: Block) -> tuple[torch.Tensor, torch.Tensor | None]:
        """caught_up: whether each new token but the first is the one that the draft would have proposed [n - 1]; None
        where nobody asks, and the LM head does not run on all n rows for it.
        """
        feed = self.device.upload(text[self.model.length :])  # [n]
        logits = self.model.forward(feed, keep=len(feed) if block.catches_up else 1)
        if not block.catches_up:
            return logits, None
        return logits[-1:], name_tokens(find_best(logits[:-1]), self.ids) == feed[1:]

    def step(self, token: torch.Tensor) -> torch.Tensor:
        return self.model.forward(token, keep=1)

    def commit(self, text: list[int]) -> None:
        self.model.crop(len(text) - 1)

    @torch.inference_mode()
    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> TextTrace:
        """Along the answer, and along the draft's own continuation after each wrong token.

        Where the model takes masks, all continuations of an answer advance side by side. Elsewhere each token is fed as a
        live block feeds it, one at a time, so that a compiled 16-bit draft reports bit for bit what it reports live.
        """
        text = self.device.upload([*prompt[-1:], *answer[:-1]])  # [n], the token before each position
        trace = self.trace_masked if self.model.takes_masks else self.trace_stepwise
        made = trace(text, self.device.upload(answer), len(prompt), Reach(budget, depth))
        self.refuse_nonfinite(made)
        return made

    def refuse_nonfinite(self, trace: TextTrace) -> None:
        """Raises NonFiniteError, for a place in the answer or for the draft's own continuation after it."""
        wrong = np.flatnonzero(trace.match == MISMATCH)
        after = np.repeat(wrong, trace.steps)  # the place that each continued step belongs to
        for columns, places in ((trace.signals, np.arange(len(trace))), (trace.continuations, after)):
            broken = places[~np.isfinite(columns.top1)]
            if len(broken):
                raise nonfinite("draft", int(broken[0]), self.model.dtype)

    def trace_masked(self, text: torch.Tensor, answer: torch.Tensor, prompt_tokens: int, reach: "Reach") -> TextTrace:
        logits = [self.model.forward(chunk, keep=len(chunk)) for chunk in text.split(CHUNK)]  # [chunk, N] each
        choices = torch.cat([name_tokens(find_best(each), self.ids) for each in logits])  # [n]
        measured = torch.cat([measure_signals(each) for each in logits])  # [n, 3]
        wrong = (choices != answer).nonzero().squeeze(1)  # [w]
        tokens, ends = choices[wrong], self.device.upload(sorted(self.workplace.ends))
        ended, steps = torch.isin(tokens, ends), torch.zeros_like(wrong)
        room = (reach.budget - 2 - wrong).clamp(
            max=reach.depth
        )  # steps after the wrong token, the last allowed one excluded
        alive = (~ended & (room > 0)).nonzero().squeeze(1)  # indices into wrong
        cached, owner, rows, found, age = self.model.length, wrong.new_zeros(0), [], [], 0
        continued = []
        while len(alive):
            # each continuation sees its own prefix of the text and its own earlier tokens, all in one cache
            seen = prompt_tokens + wrong[alive]  # [a], tokens of the text that it follows
            owner = torch.cat([owner, alive])
            visible = torch.arange(cached, device=owner.device)[None] < seen[:, None]
            mask = torch.cat([visible, owner[None] == alive[:, None]], dim=1)  # [a, cached + fed]
            logits = self.model.forward(tokens[alive], keep=len(alive), positions=seen + age, mask=mask)  # [a, N]
            tokens[alive] = name_tokens(find_best(logits), self.ids)
            rows.append(alive)
            continued.append(tokens[alive])
            found.append(measure_signals(logits))
            age += 1
            steps[alive] += 1
            ended[alive] = torch.isin(tokens[alive], ends)
            alive = alive[~ended[alive] & (steps[alive] < room[alive])]
        order = torch.cat(rows).argsort(stable=True) if rows else wrong  # by continuation, then by step
        after = torch.cat(found)[order] if rows else measured[:0]
        ids = torch.cat([choices, torch.cat(continued)[order]]) if rows else choices
        return TextTrace(
            match=np.where((choices == answer).cpu().numpy(), MATCH, MISMATCH).astype(np.int8),
            signals=make_columns(measured.cpu().numpy()),
            steps=steps.cpu().numpy().astype(np.int8),
            ended=ended.cpu().numpy(),
            continuations=make_columns(after.cpu().numpy()),
            ids=ids.cpu().numpy().astype(np.int32),
        )

    def trace_stepwise(self, text: torch.Tensor, answer: torch.Tensor, prompt_tokens: int, reach: "Reach") -> TextTrace:
        match, signals, steps, ended, after, choices, continued = [], [], [], [], [], [], []
        for place in range(len(text)):
            feed, wanted = text[place : place + 1], int(answer[place])
            feed, token, measured = self.follow(feed)
            signals.append(measured)
            choices.append(token)
            match.append(MATCH if token == wanted else MISMATCH)
            if token == wanted:
                continue
            room, count = min(reach.budget - 2 - place, reach.depth), 0
            while token not in self.workplace.ends and count < room:
                feed, token, measured = self.follow(feed)
                after.append(measured)
                continued.append(token)
                count += 1
            steps.append(count)
            ended.append(token in self.workplace.ends)
            self.model.crop(prompt_tokens + place)
        return TextTrace(
            match=np.array(match, np.int8),
            signals=make_columns(np.array(signals)),
            steps=np.array(steps, np.int8),
            ended=np.array(ended, bool),
            continuations=make_columns(np.array(after).reshape(-1, 3)),
            ids=np.array(choices + continued, np.int32),
        )

    def follow(self, feed: torch.Tensor) -> tuple[torch.Tensor, int, list[float]]:
        """Feed one token [1]: the draft's next one, on the device and on the host, and its signals."""
        logits = self.step(feed)
        following = name_tokens(find_best(logits), self.ids)
        *measured, token = self.device.read(torch.cat([measure_signals(logits)[0], following.float()]))
        return following, int(token), measured


@dataclass
class Reach:
    """How far recording goes."""

    budget: int  # tokens that the answer was allowed to have
    depth: int  # steps of the draft's own continuation after a wrong token
