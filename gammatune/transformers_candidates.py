"""Drafts for transformers' assisted decoding, with the length that a gammatune policy wants.

transformers verifies and commits; this side drafts, and writes down a Round for each block. The draft's cache is ours: a
round feeds it what it lacks of the committed text, one token or two, and then one drafted token at a time.
"""

from dataclasses import dataclass, field
from itertools import takewhile

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from gammatune.decoding.loop import stop_reason
from gammatune.decoding.sampling import find_best, measure_thought
from gammatune.policies import DraftSignal, Policy
from gammatune.records import Round
from gammatune.runtimes.base import CachedModel


@dataclass
class Block:
    """Drafted tokens, and for each the scores [1, V] that it was drawn from. stopped, dropped: as in a Proposal."""

    planned: int
    state: dict
    tokens: list[int] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    ended: bool = False
    stopped: bool = False
    dropped: bool = False


class PolicyCandidates(CandidateGenerator):
    """One generate call's draft blocks. Batch size 1; `rounds` grows by one with each verified block.

    text: the prompt's ids without padding. The draft is given the target's own logits processors, so that in sampling the
    scores handed over are those that the tokens were drawn from, as the acceptance test needs them.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        policy: Policy,
        text: list[int],
        config: GenerationConfig,
        processors: LogitsProcessorList,
    ):
        self.draft = CachedModel(draft, draft.config.get_text_config().vocab_size)
        # layers with a window forget what a crop must give back, unless told to keep it
        self.draft.cache.activate_past_recording()
        self.policy = policy
        self.committed = list(text)
        self.prompt_tokens = len(text)
        self.config = config
        self.processors = processors
        self.ends = read_ends(config)
        self.rounds: list[Round] = []

    def get_candidates(self, input_ids: torch.Tensor, **unused) -> tuple[torch.Tensor, torch.Tensor | None]:
        """input_ids [1, n] to [1, n + k] and, in sampling, the draft's scores [1, k, V]; k may be 0."""
        self.given = input_ids.shape[1]
        self.block = block = Block(self.policy.plan(), self.policy.state())
        self.fill(block, input_ids, min(block.planned, self.room() - 1))
        if not block.tokens:
            return input_ids, None
        drafted = torch.tensor([block.tokens], dtype=input_ids.dtype, device=input_ids.device)
        scores = torch.stack(block.scores, dim=1) if self.config.do_sample else None
        return torch.cat([input_ids, drafted], dim=1), scores

    def room(self) -> int:
        """Tokens that may still be emitted, or that the draft can still address where that is less."""
        context = getattr(self.draft.model.config.get_text_config(), "max_position_embeddings", None)
        budget = self.config.max_length - self.given
        return budget if context is None else min(budget, context - len(self.committed))

    def fill(self, block: Block, input_ids: torch.Tensor, gamma: int) -> None:
        """Draft up to gamma tokens, stopping where the policy says so or where the draft ends the sequence."""
        if gamma <= 0:
            return
        feed = self.prepare_feed()
        while len(block.tokens) < gamma and not (block.stopped or block.ended):
            logits = self.draft.forward(feed, keep=1)  # [1, V]
            # a copy: processors write in place, and what a cached forward returns may not be written to
            scores = self.processors(input_ids, logits.clone().to(input_ids.device))
            feed = self.draw(scores)  # [1]
            token = int(feed)
            if self.policy.watches_draft:
                block.stopped = not self.policy.keep_drafting(self.read_signal(len(block.tokens), logits, scores, token))
                if block.stopped and self.policy.stop_token == "exclude":
                    block.dropped = True
                    return
            block.tokens.append(token)
            block.scores.append(scores)
            block.ended = token in self.ends
            input_ids = torch.cat([input_ids, feed[None].to(input_ids)], dim=1)
            feed = feed.to(self.draft.model.device)

    def prepare_feed(self) -> torch.Tensor:
        """What the draft's cache lacks of the committed text [n]; at first the prompt but its last token goes ahead."""
        if self.draft.length == 0 and self.prompt_tokens > 1:
            self.draft.forward(self.upload(self.committed[: self.prompt_tokens - 1]), keep=1)
        return self.upload(self.committed[self.draft.length :])

    def upload(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.draft.model.device)

    def draw(self, scores: torch.Tensor) -> torch.Tensor:
        """One token [1] from scores [1, V], in sampling from torch's global generator as transformers itself draws."""
        if self.config.do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
        return find_best(scores)

    def read_signal(self, index: int, logits: torch.Tensor, scores: torch.Tensor, token: int) -> DraftSignal:
        top1, entropy, margin = measure_thought(logits)[0].tolist()
        chosen = scores.softmax(dim=-1)[0, token].item() if self.config.do_sample else top1
        return DraftSignal.rounded(index, top1, entropy, margin, chosen)

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """Write the round down and let the policy learn; input_ids [1, n] ends with what was emitted.

        num_matches is not used: transformers reports emitted - 1, one too few where the last accepted token ended the
        sequence. Accepted are the drafted tokens that were emitted: what replaces a rejected token is never that token.
        """
        emitted = input_ids[0, self.given :].tolist()
        block, drafted = self.block, len(self.block.tokens)
        pairs = zip(block.tokens, emitted, strict=False)
        finished = Round(
            planned=block.planned,
            drafted=drafted,
            accepted=sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)),
            emitted=len(emitted),
            draft_forwards=drafted + block.dropped,
            stop=stop_reason(block.planned, drafted, block.ended, block),
            context=len(self.committed),
            state=block.state,
        )
        self.committed.extend(emitted)
        self.draft.crop(len(self.committed) - 1)
        self.policy.observe(finished)
        self.rounds.append(finished)


def read_ends(config: GenerationConfig) -> set[int]:
    """Ids that end the sequence, none where generation has no such id."""
    ends = config.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list | tuple) else {int(ends)}
