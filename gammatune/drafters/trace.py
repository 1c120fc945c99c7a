"""Walk the draft along the target's answer, and along its own continuations from every token where it is wrong."""

from dataclasses import dataclass

import numpy as np
import torch

from gammatune.decoding.sampling import find_best, measure_thought, name_tokens
from gammatune.policies.base import SIGNAL_DIGITS
from gammatune.replay.table import AcceptanceTurn, Signals
from gammatune.runtimes.base import CachedModel, PairRuntime

CHUNK = 128


@dataclass
class Answered:
    """A prompt and the target's own greedy answer to it; budget is how many tokens the answer was allowed to have."""

    question_id: int
    category: str
    task: str
    turn: int
    prompt_ids: list[int]
    output_ids: list[int]
    budget: int
    finish: str


def trace_answer(runtime: PairRuntime, answered: Answered, gamma_max: int) -> AcceptanceTurn:
    """The draft beside one answer: matches, signals, and up to gamma_max steps behind each wrong token."""
    runtime.reset()
    choices, thoughts = walk_answer(runtime, answered)  # [n], [n, 3]
    match = choices == runtime.upload(answered.output_ids)
    wrong = (~match).nonzero().squeeze(1)
    steps, ended, tail_thoughts = walk_tails(runtime, answered, wrong, choices[wrong], gamma_max)
    return AcceptanceTurn(
        question_id=answered.question_id,
        category=answered.category,
        task=answered.task,
        turn=answered.turn,
        prompt_tokens=len(answered.prompt_ids),
        budget=answered.budget,
        finish=answered.finish,
        output_ids=np.array(answered.output_ids, dtype=np.int32),
        match=match.cpu().numpy().astype(np.int8),
        signals=as_signals(thoughts),
        tail_steps=steps,
        tail_ended=ended,
        tails=as_signals(tail_thoughts),
    )


def as_signals(thoughts: torch.Tensor) -> Signals:
    """[n, 3] to three arrays, rounded as a live policy sees them."""
    values = thoughts.double().cpu().numpy().round(SIGNAL_DIGITS)
    return Signals(*np.ascontiguousarray(values.T))


def walk_answer(runtime: PairRuntime, answered: Answered) -> tuple[torch.Tensor, torch.Tensor]:
    """The draft's greedy token [n] and thought [n, 3] at each position of the answer, teacher-forced."""
    draft = runtime.draft
    tokens = runtime.upload([*answered.prompt_ids, *answered.output_ids])
    first = len(answered.prompt_ids) - 1
    if first:
        draft.forward(tokens[:first], keep=1)
    choices, thoughts = [], []
    for chunk in tokens[first:-1].split(CHUNK):
        logits = draft.forward(chunk, keep=chunk.shape[0])  # [chunk, N]
        choices.append(name_tokens(find_best(logits), draft.ids))
        thoughts.append(measure_thought(logits))
    return torch.cat(choices), torch.cat(thoughts)


def walk_tails(runtime: PairRuntime, answered: Answered, wrong: torch.Tensor, tokens: torch.Tensor, gamma_max: int):
    """All continuations side by side, one token each per forward: (steps [w], ended [w], thoughts [sum of steps, 3]).

    wrong [w]: positions in the answer, tokens [w]: the draft's wrong tokens there. A continuation ends with the sequence,
    after gamma_max steps, or where no block could reach: the last allowed token is never drafted.
    """
    ends = runtime.upload(sorted(runtime.pair.eos_ids))
    room = (answered.budget - 2 - wrong).clamp(max=gamma_max)
    ended = torch.isin(tokens, ends)
    alive = (~ended & (room > 0)).nonzero().squeeze(1)  # indices into wrong
    tails = Tails(runtime.draft, len(answered.prompt_ids))
    steps, rows, thoughts = torch.zeros_like(wrong), [], []
    while alive.shape[0]:
        logits = tails.step(tokens[alive], wrong[alive], alive)  # [alive, N]
        tokens[alive] = name_tokens(find_best(logits), runtime.draft.ids)
        rows.append(alive)
        thoughts.append(measure_thought(logits))
        steps[alive] += 1
        ended[alive] = torch.isin(tokens[alive], ends)
        alive = alive[~ended[alive] & (steps[alive] < room[alive])]
    order = torch.cat(rows).argsort(stable=True) if rows else wrong.new_zeros(0)
    together = torch.cat(thoughts)[order] if rows else torch.zeros(0, 3)
    return steps.cpu().numpy().astype(np.int8), ended.cpu().numpy(), together


class Tails:
    """Many continuations of one text in one cache: each token sees its own prefix of the text and its own tail."""

    def __init__(self, draft: CachedModel, prompt_tokens: int):
        self.draft = draft
        self.prompt_tokens = prompt_tokens
        self.text = draft.length
        self.owners = torch.zeros(0, dtype=torch.long)
        self.depth = 0

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor, wrong: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """Feed one token per continuation [a], which left the text at answer position wrong [a]; logits [a, N]."""
        seen = self.prompt_tokens + wrong  # tokens of the text that each continuation follows
        self.owners = torch.cat([self.owners.to(owner.device), owner])
        text = torch.arange(self.text, device=owner.device)[None] < seen[:, None]
        visible = torch.cat([text, self.owners[None] == owner[:, None]], dim=1)  # [a, text + tails]
        model = self.draft.model
        hidden = torch.zeros(visible.shape, dtype=model.dtype, device=owner.device)
        hidden.masked_fill_(~visible, torch.finfo(model.dtype).min)
        output = model(
            input_ids=tokens[None],
            position_ids=(seen + self.depth)[None],
            attention_mask=hidden[None, None],
            past_key_values=self.draft.cache,
            use_cache=True,
        )
        self.depth += 1
        self.draft.length += tokens.shape[0]
        return output.logits[0, :, : self.draft.vocab_size].float()
