"""The decoding loop. Batch size 1.

A paper's symbols here: p = the target's distributions, q = the drafter's, gamma = what `policy.plan()` returns. Committed
tokens are the prompt and everything emitted since; the last of them is in no cache, and is fed with the next forward.
"""

import time
from dataclasses import dataclass, field, replace

import torch

from gammatune.config import DecodeConfig
from gammatune.decoding.accept import ChainVerifier, Verifier
from gammatune.decoding.sampling import GreedySampler, Sampler, make_sampler
from gammatune.drafters.base import Drafter, Workplace, refuse_watching
from gammatune.drafters.known import KnownText
from gammatune.drafters.model import DraftModel
from gammatune.errors import UserError
from gammatune.models.pair import Pair
from gammatune.policies.fixed import Autoregressive
from gammatune.policies.session import PolicySession
from gammatune.records import Block, Proposal, Round, Verdict
from gammatune.runtimes.base import Model, build_models
from gammatune.runtimes.choose import choose_runtime
from gammatune.runtimes.device import Device
from gammatune.runtimes.finite import NonFiniteError, nonfinite
from gammatune.traces import Trace

MOST_LATE = 16  # rounds without drafting after which the shipped rules try again: so many tokens are read late


@dataclass
class Engine:
    """Everything that answers a prompt: the target, what proposes, and where both run."""

    pair: Pair
    target: Model
    drafter: Drafter
    device: Device
    runtime: str  # what really runs: "eager" or "compiled"
    ends: frozenset[int]  # ids that end an answer
    choice: str = ""  # why this runtime and so many threads, where they were measured (runtime=auto)

    def warm(self, longest: int, context: int, late: bool = False) -> None:
        """Record what the device replays: blocks of up to `longest` drafted tokens, texts of up to `context` tokens.

        late: the draft's logits of all tokens that it reads are needed. No effect where nothing is recorded.
        """
        self.target.warm(range(1, longest + 2), context=context)
        draft = self.drafter.workplace.model
        if draft is not None:
            # after another drafter's blocks the model reads all of their tokens at once
            fed = (1, 2) if len(self.drafter.members) == 1 else range(1, max(longest, MOST_LATE) + 3)
            draft.warm(fed, keep=1, context=context)
            if late:
                draft.warm(range(2, MOST_LATE + 2), context=context)

    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> Trace:
        """What the drafter would propose at each position of the target's own greedy answer; see `Drafter.trace`."""
        if self.drafter.reads_features:
            ChainVerifier(self.target, self.device).begin(prompt)
        self.drafter.begin(prompt, GreedySampler())
        return self.drafter.trace(prompt, answer, budget, depth)

    def with_drafter(self, drafter: Drafter) -> "Engine":
        """The same target with another drafter that needs no model."""
        drafter.attach(Workplace(self.device, self.pair.vocab_size, self.ends))
        return replace(self, drafter=drafter)

    def filling_blocks(self, known: list[int]) -> "Engine":
        """The same with a drafter that proposes as many tokens as are planned: the one that takes forwards, if any does.

        Any other proposes when it pleases, and costs no forward: the known text takes its place.
        """
        models = [member for member in self.drafter.members if member.forwards_per_token]
        return replace(self, drafter=models[0]) if models else self.with_drafter(KnownText(answer=known))


def build_engine(
    pair: Pair, runtime: str = "eager", drafter: Drafter | None = None, threads: int | None = None, release: bool = False
) -> Engine:
    """A pair's models in a runtime, with a drafter (None: the pair's draft model).

    runtime: "eager", "compiled" or "auto", which measures. threads: for "auto" on a CPU, None to measure them too.
    release: the pair's own forward is needed no more, so weights are held once.
    """
    drafter, device, ends = drafter or DraftModel(), Device(pair.device), frozenset(pair.eos_ids)
    drafter.load(pair)
    choice = choose_runtime(pair, threads, release=release) if runtime == "auto" else None
    models = choice.models if choice else build_models(pair, runtime, release)
    if drafter.reads_features:
        models.target.keep_features()
    workplace = Workplace(device, pair.vocab_size, ends, models.draft, pair.draft_ids, models.target, models.runtime)
    drafter.attach(workplace)
    return Engine(pair, models.target, drafter, device, models.runtime, ends, choice.reason if choice else "")


@dataclass
class Generation:
    """An answer to one prompt."""

    output_ids: list[int]  # a final end of sequence included
    finish: str  # "eos" or "length"
    prefill_ms: float
    wall_ms: float  # prefill included
    rounds: list[Round]


@dataclass
class Marks:
    """Moments of one round, and the policy's milliseconds in it."""

    start: object
    drafted: object
    verified: object
    policy_ms_drafting: float
    policy_ms: float


@dataclass
class Turn:
    """Everything that one answer's rounds share."""

    drafter: Drafter
    verifier: Verifier
    session: PolicySession
    sampler: Sampler | GreedySampler
    device: Device
    text: list[int]  # committed tokens: the prompt and the answer so far
    prompt_tokens: int
    limit: int  # most tokens that the text may have
    ends: frozenset[int]
    rounds: list[Round] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        answered = len(self.text) > self.prompt_tokens
        return len(self.text) >= self.limit or (answered and self.text[-1] in self.ends)


def generate_autoregressive(engine: Engine, prompt: list[int], decode: DecodeConfig, seed: int = 0) -> Generation:
    """The target alone, one token per forward: the reference for ids and for speed. See generate_speculative."""
    return generate_speculative(engine, prompt, PolicySession(Autoregressive()), decode, seed)


@torch.inference_mode()
def generate_speculative(
    engine: Engine, prompt: list[int], session: PolicySession, decode: DecodeConfig, seed: int = 0
) -> Generation:
    """Answer one prompt. Greedy: the target's own ids. Sampling: the target's own distribution.

    The policy is not reset here: `session.start` does that where its `carry` says so. Raises UserError for an empty prompt,
    for one that fills the context, for a policy that watches a drafter without signals, PolicyError, and NonFiniteError for
    logits that are no numbers.
    """
    turn = start_turn(engine, prompt, session, decode, seed)
    turn.device.synchronize()
    started = time.perf_counter()
    prefill(turn)
    turn.device.synchronize()
    prefilled = time.perf_counter()
    while not turn.finished:
        run_round(turn)
    turn.device.synchronize()
    ended = time.perf_counter()
    read_marks(turn)
    answer = turn.text[turn.prompt_tokens :]
    finish = "eos" if answer[-1] in turn.ends else "length"
    return Generation(answer, finish, (prefilled - started) * 1e3, (ended - started) * 1e3, turn.rounds)


def start_turn(engine: Engine, prompt: list[int], session: PolicySession, decode: DecodeConfig, seed: int = 0) -> Turn:
    context = engine.pair.context
    if not prompt:
        raise UserError("The prompt is empty: give at least one token to continue from.")
    if len(prompt) >= context:
        raise UserError(
            f"The prompt has {len(prompt)} tokens, but {engine.pair.name} can address {context} with its answer: "
            "shorten the prompt or leave the question out."
        )
    if not engine.drafter.signals and session.watches_draft:
        refuse_watching(engine.drafter, type(session.policy).__name__)
    return Turn(
        drafter=engine.drafter,
        verifier=ChainVerifier(engine.target, engine.device),
        session=session,
        sampler=make_sampler(decode, engine.device.device, seed),
        device=engine.device,
        text=list(prompt),
        prompt_tokens=len(prompt),
        limit=min(len(prompt) + decode.max_new_tokens, context),
        ends=engine.ends,
    )


def prefill(turn: Turn) -> None:
    """Tell the policy of the answer, and put all of the prompt but its last token into the caches; into the drafter's only
    where it can be asked for a draft.
    """
    turn.session.begin(turn.prompt_tokens)
    turn.verifier.begin(turn.text)
    if turn.session.drafts:
        turn.drafter.begin(turn.text, turn.sampler)


@torch.inference_mode()
def run_round(turn: Turn) -> None:
    """Plan, propose, verify, commit, learn. Raises NonFiniteError and PolicyError."""
    session, spent = turn.session, turn.session.ms
    block = session.open_block(turn.limit - len(turn.text) - 1, turn.ends)
    state = session.state()
    planning_ms = session.ms - spent
    start = turn.device.mark()
    proposal = turn.drafter.propose(turn.text, block) if block.limit else Proposal(turn.device.upload([]))
    drafted, drafting_ms = turn.device.mark(), session.ms - spent - planning_ms
    verdict = turn.verifier.verify(turn.text, proposal, turn.sampler)
    if verdict.nonfinite is not None:
        raise name_nonfinite(turn, proposal, verdict.nonfinite)
    verified = turn.device.mark()
    finished = commit(turn, block, proposal, verdict)
    turn.rounds.append(finished)
    session.observe(finished, turn.text[finished.context :], verdict.caught_up)
    finished.state = state  # for the log; a policy knows its own numbers, and a replay has none to show it
    turn.marks.append(Marks(start, drafted, verified, drafting_ms, session.ms - spent))


def name_nonfinite(turn: Turn, proposal: Proposal, place: int) -> NonFiniteError:
    """place: as in Verdict.nonfinite."""
    position, steps = len(turn.text) - turn.prompt_tokens, proposal.forwards
    if place < steps:
        return nonfinite("draft", position + place, turn.drafter.workplace.model.dtype)
    return nonfinite("target", position + place - steps, turn.verifier.target.dtype)


def commit(turn: Turn, block: Block, proposal: Proposal, verdict: Verdict) -> Round:
    """Append what was accepted and the target's own token, end at an end of sequence, and roll both sides back to that."""
    context = len(turn.text)
    block.cut(verdict.tokens)
    accepted = min(len(verdict.path), block.drafted)
    emitted = verdict.tokens[:accepted]
    if not (block.ended and accepted == block.drafted):
        emitted.append(verdict.next_token)
    turn.text.extend(emitted)
    turn.verifier.commit(turn.text, verdict)
    if turn.session.drafts:
        turn.drafter.commit(turn.text)
    counted = (block.planned, block.drafted, accepted, len(emitted), proposal.forwards)
    return Round(*counted, block.stop, context, proposer=proposal.proposer)


def read_marks(turn: Turn) -> None:
    """Turn the marks of all rounds into times; the policy's time in mid-block is not the draft's."""
    for finished, marks in zip(turn.rounds, turn.marks, strict=True):
        finished.draft_ms = turn.device.between(marks.start, marks.drafted) - marks.policy_ms_drafting
        finished.verify_ms = turn.device.between(marks.drafted, marks.verified)
        finished.policy_ms = marks.policy_ms
