"""The decoding loop. Batch size 1.

A paper's symbols here: p = target_probs, q = draft_probs, gamma = what `policy.plan()` returns. Committed tokens are the
prompt and everything emitted since. The last committed token is in neither cache: whatever a cache lacks of the committed
text is fed with the next forward. So a rejection is a crop, and the hole that a full acceptance leaves in the draft's cache
(its last token was never fed) is filled by a two-token feed, at no extra forward.
"""

import time
from dataclasses import dataclass, field

import torch

from gammatune.config import DecodeConfig
from gammatune.decoding.clock import Clock
from gammatune.decoding.sampling import GreedySampler, Sampler, make_sampler, measure_thought, name_tokens
from gammatune.errors import UserError
from gammatune.policies import DraftSignal, Policy
from gammatune.policies.fixed import Autoregressive
from gammatune.records import Round
from gammatune.runtimes.base import PairRuntime


@dataclass
class Generation:
    """An answer: ids (a final end of sequence included), why it ended ("eos" or "length"), times in ms, rounds."""

    output_ids: list[int]
    finish: str
    prefill_ms: float
    wall_ms: float
    rounds: list[Round]


@dataclass
class Proposal:
    """A draft block: tokens [k] (target ids) and, as the sampler writes them down, the distributions over the target's
    vocabulary that they were drawn from. dropped: whether the policy threw away one more token."""

    tokens: torch.Tensor
    draft_probs: torch.Tensor | None
    stopped: bool = False
    dropped: bool = False
    policy_ms: float = 0.0

    @property
    def forwards(self) -> int:
        return self.tokens.shape[0] + self.dropped


@dataclass
class Turn:
    """Everything that one turn's rounds share."""

    runtime: PairRuntime
    policy: Policy
    sampler: Sampler | GreedySampler
    committed: list[int]
    prompt_tokens: int
    limit: int
    clock: Clock
    rounds: list[Round] = field(default_factory=list)
    marks: list[tuple] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.limit - len(self.committed)

    def is_end(self, token: int) -> bool:
        return token in self.runtime.pair.eos_ids

    @property
    def finished(self) -> bool:
        answered = len(self.committed) > self.prompt_tokens
        return self.remaining <= 0 or (answered and self.is_end(self.committed[-1]))


def generate_autoregressive(runtime: PairRuntime, prompt_ids: list[int], decode: DecodeConfig, seed: int = 0) -> Generation:
    """The target alone, one token per forward: the reference for ids and for speed. See generate_speculative."""
    return generate_speculative(runtime, prompt_ids, Autoregressive(), decode, seed)


def generate_speculative(
    runtime: PairRuntime, prompt_ids: list[int], policy: Policy, decode: DecodeConfig, seed: int = 0
) -> Generation:
    """Answer one prompt. Greedy: the target's own ids. Sampling: the target's own distribution.

    The policy is not reset here: when it starts afresh is its own `carry` rule, which the caller knows.
    Raises UserError for an empty prompt or one that fills the context.
    """
    turn = start_turn(runtime, prompt_ids, policy, decode, seed)
    turn.clock.synchronize()
    started = time.perf_counter()
    prefill(turn)
    turn.clock.synchronize()
    prefilled = time.perf_counter()
    while not turn.finished:
        run_round(turn)
    turn.clock.synchronize()
    ended = time.perf_counter()
    read_marks(turn)
    output_ids = turn.committed[turn.prompt_tokens :]
    finish = "eos" if turn.is_end(output_ids[-1]) else "length"
    return Generation(output_ids, finish, (prefilled - started) * 1e3, (ended - started) * 1e3, turn.rounds)


def start_turn(runtime: PairRuntime, prompt_ids: list[int], policy: Policy, decode: DecodeConfig, seed: int) -> Turn:
    context = runtime.pair.context
    if not prompt_ids:
        raise UserError("The prompt is empty: give at least one token to continue from.")
    if len(prompt_ids) >= context:
        raise UserError(
            f"The prompt has {len(prompt_ids)} tokens, but {runtime.pair.name} can address {context} with its answer: "
            "shorten the prompt or leave the question out."
        )
    runtime.reset()
    return Turn(
        runtime=runtime,
        policy=policy,
        sampler=make_sampler(decode, runtime.device, seed),
        committed=list(prompt_ids),
        prompt_tokens=len(prompt_ids),
        limit=min(len(prompt_ids) + decode.max_new_tokens, context),
        clock=Clock(runtime.device),
    )


def prefill(turn: Turn) -> None:
    """Put all of the prompt but its last token into the caches; the draft's only where a draft can be asked for."""
    if turn.prompt_tokens == 1:
        return
    tokens = turn.runtime.upload(turn.committed[:-1])
    turn.runtime.target.forward(tokens, keep=1)
    if not isinstance(turn.policy, Autoregressive):
        turn.runtime.draft.forward(tokens, keep=1)


@torch.inference_mode()
def run_round(turn: Turn) -> None:
    """Plan, draft, verify, commit, learn."""
    asked = time.perf_counter()
    planned, state = turn.policy.plan(), turn.policy.state()
    policy_ms = (time.perf_counter() - asked) * 1e3
    start = turn.clock.mark()
    proposal = propose(turn, min(planned, turn.remaining - 1))
    drafted = turn.clock.mark()
    tokens, accepted, next_token = verify(turn, proposal)
    verified = turn.clock.mark()
    finished = commit(turn, planned, proposal, (tokens, accepted, next_token))
    finished.state = state
    asked = time.perf_counter()
    turn.policy.observe(finished)
    finished.policy_ms = policy_ms + proposal.policy_ms + (time.perf_counter() - asked) * 1e3
    turn.rounds.append(finished)
    turn.marks.append((start, drafted, verified, proposal.policy_ms))


def read_marks(turn: Turn) -> None:
    """Turn the marks of all rounds into times; the policy's words in mid-block are not the draft's time."""
    for finished, (start, drafted, verified, policy_ms) in zip(turn.rounds, turn.marks, strict=True):
        finished.draft_ms = turn.clock.between(start, drafted) - policy_ms
        finished.verify_ms = turn.clock.between(drafted, verified)


def propose(turn: Turn, gamma: int) -> Proposal:
    """Draft up to gamma tokens, stopping where the policy says so or where the draft ends the sequence."""
    runtime, sampler = turn.runtime, turn.sampler
    ids, vocab_size = runtime.draft.ids, runtime.pair.vocab_size
    block = Proposal(runtime.upload([]), sampler.spread([], ids, vocab_size))
    if gamma <= 0:
        return block
    feed, tokens, probs = runtime.upload(turn.committed[runtime.draft.length :]), [], []
    while len(tokens) < gamma and not block.stopped:
        logits = runtime.draft.forward(feed, keep=1)  # [1, N]
        q = sampler.distribution(logits)
        row = sampler.draw(q)  # [1]
        feed = name_tokens(row, ids)
        if turn.policy.watches_draft:
            block.stopped = not ask_policy(turn, block, (len(tokens), logits, q, row))
            if block.stopped and turn.policy.stop_token == "exclude":
                block.dropped = True
                break
        tokens.append(feed)
        probs.append(q)
        if ends_sequence(turn, feed):
            break
    if tokens:
        block.tokens, block.draft_probs = torch.cat(tokens), sampler.spread(probs, ids, vocab_size)
    return block


def ends_sequence(turn: Turn, token: torch.Tensor) -> bool:
    """Whether the drafted token [1] ends the sequence; not asked where asking would wait for the device.

    There the block runs on, and `commit` ignores what follows a drafted end of sequence.
    """
    if not (turn.runtime.reads_are_free or turn.policy.watches_draft):
        return False
    return turn.is_end(turn.runtime.read(token)[0])


def ask_policy(turn: Turn, block: Proposal, seen: tuple) -> bool:
    signal = read_signal(turn, *seen)
    asked = time.perf_counter()
    keep = turn.policy.keep_drafting(signal)
    block.policy_ms += (time.perf_counter() - asked) * 1e3
    return keep


def read_signal(turn: Turn, index: int, logits: torch.Tensor, q: torch.Tensor, row: torch.Tensor) -> DraftSignal:
    """What the draft thought: logits [1, N], and row [1] drawn from the distribution q. One host read."""
    thought = measure_thought(logits)[0]  # [3]
    chosen = thought[:1] if turn.sampler.greedy else q[0, row]
    top1, entropy, margin, chosen = turn.runtime.read(torch.cat([thought, chosen]))
    return DraftSignal.rounded(index, top1, entropy, margin, chosen)


def verify(turn: Turn, proposal: Proposal) -> tuple[list[int], int, int]:
    """One target forward over what its cache lacks and the block; (drafted tokens, accepted, next token) on the host."""
    runtime, drafted = turn.runtime, proposal.tokens
    missing = runtime.upload(turn.committed[runtime.target.length :])
    logits = runtime.target.forward(torch.cat([missing, drafted]), keep=drafted.shape[0] + 1)  # [k + 1, V]
    target_probs = turn.sampler.distribution(logits)
    verdict = turn.sampler.judge(target_probs, proposal.draft_probs, drafted)  # [2]
    *tokens, accepted, next_token = runtime.read(torch.cat([drafted, verdict]))
    return tokens, accepted, next_token


def commit(turn: Turn, planned: int, proposal: Proposal, verdict: tuple[list[int], int, int]) -> Round:
    """Append what stands, cut at an end of sequence, and crop both caches to a prefix of the committed text."""
    tokens, accepted, next_token = verdict
    context = len(turn.committed)
    ends = [i for i, token in enumerate(tokens) if turn.is_end(token)]
    drafted = ends[0] + 1 if ends else len(tokens)
    accepted = min(accepted, drafted)
    ended = bool(ends) and accepted == drafted
    emitted = tokens[:accepted] + ([] if ended else [next_token])
    turn.committed.extend(emitted)
    for model in (turn.runtime.target, turn.runtime.draft):
        model.crop(len(turn.committed) - 1)
    stop = stop_reason(planned, drafted, bool(ends), proposal)
    return Round(planned, drafted, accepted, len(emitted), proposal.forwards, stop, context)


def stop_reason(planned: int, drafted: int, ended: bool, proposal: Proposal) -> str:
    if ended:
        return "eos"
    if proposal.dropped or (proposal.stopped and drafted < planned):
        return "policy"
    return "budget" if drafted < planned else "length"
