"""runtime=auto: the fastest form of a pair that is exact on this machine, by a measurement of a few seconds.

On a CPU, eager and (where nothing is refused) compiled models are timed on 1, 2, 4, ... threads, and compiled ones are taken
only if their logits are eager's to rounding. A pair of more than BOTH_FORMS is never held in both forms: its compiled models
are judged in the same way, one after the other, but not timed against eager. On CUDA the compiled form is taken wherever it
exists, unmeasured and unjudged: recording graphs only to compare them takes longer than a choice may.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from gammatune.machine import available_cores
from gammatune.models.devices import GIB
from gammatune.models.pair import Pair
from gammatune.runtimes import native
from gammatune.runtimes.base import Model, Models, build_model, build_models, refusals

BLOCK = 5  # drafted tokens of the round that is timed: a common length, and one that takes the way of several tokens
FEEDS = (24, 1, 1, BLOCK + 1)  # the text that exactness is judged on: a prompt, single steps, a verification
# What rounding may move, by dtype: eager's best logit lies at most so far above the compiled choice's; the median logit half
ROUNDING = {torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 5e-1}
FIXED_POINT = 1e-2  # at least so much with weights in int8, where eager's activations are no 16-bit fixed point
BOTH_FORMS = 2 * GIB  # of weights
BURST, BURSTS = 3, 4  # timed calls in a row, and how often at most
PROMPT = 32  # tokens in the cache while calls are timed
GIVE_UP = 8.0  # a candidate whose very first step takes this many times the best step is not timed at all
DROP = 1.5  # one that costs this many times the best is not timed again


@dataclass
class Choice:
    """What auto came to."""

    models: Models  # ready to use on these threads
    threads: int  # CPU threads that torch and the models now use
    reason: str  # one sentence for the log


@dataclass
class Candidate:
    """A form of the pair on a number of threads, and its best median milliseconds so far."""

    models: Models
    threads: int
    step: float = float("inf")  # one token by the target
    verify: float = float("inf")  # BLOCK + 1 tokens by the target
    draft: float = 0.0  # one token by the draft; 0 without one

    @property
    def cost(self) -> float:
        """Milliseconds of an autoregressive step and of a round of BLOCK drafted tokens: what runs are made of."""
        return self.step + self.verify + BLOCK * self.draft

    @property
    def title(self) -> str:
        return f"{self.models.runtime} on {count(self.threads, 'thread')}"


def choose_runtime(pair: Pair, threads: int | None = None, seconds: float = 4.0, release: bool = False) -> Choice:
    """The fastest exact models of the pair; torch's threads are set to the number that won. Its dtype stays.

    threads: None tries 1, 2, 4, ... up to the cores of this process. seconds: of measuring; building the models, the
    check of exactness, and on its first use compiling the C++ step, come on top. release: as for build_models.
    """
    if pair.device.type == "cuda":
        return choose_on_cuda(pair)
    counts, rejected = thread_counts(threads), "; ".join(refusals(pair))
    if release and not rejected and count_bytes(pair) > BOTH_FORMS:
        forms, rejected = build_large(pair, counts[0])
    else:
        torch.set_num_threads(1)  # copying weights gains little from more, and loses much where the cores are busy
        forms = [build_models(pair, name) for name in (("eager",) if rejected else ("compiled", "eager"))]
    candidates = [Candidate(models, n) for n in counts for models in forms]
    measure(candidates, pair, perf_counter() + seconds)
    best = min(candidates, key=rank)
    eager = [candidate for candidate in candidates if candidate.models.runtime == "eager"]
    if best.models.runtime == "compiled" and eager:
        rejected = find_deviation(best, min(eager, key=rank), pair)
        if rejected:
            candidates, best = eager, min(eager, key=rank)
    use_threads(best)
    for model in (best.models.target, best.models.draft):
        if model is not None:
            model.reset()
        if release and isinstance(model, native.NativeModel):
            model.release()
    return Choice(best.models, best.threads, explain(best, candidates, rejected))


def count_bytes(pair: Pair) -> int:
    """Of all weights; those that two models share count once."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    return sum({id(weight): weight.nbytes for model in models for weight in model.parameters()}.values())


def build_large(pair: Pair, threads: int) -> tuple[list[Models], str | None]:
    """The compiled models of a pair alone; eager ones, and why, if a compiled one deviates from what eager gave before."""
    torch.set_num_threads(threads)
    built = {}
    for role in ("target", "draft"):
        if getattr(pair, role) is None:
            continue
        expected = read_text(build_model(pair, role, "eager"), pair)
        built[role] = build_model(pair, role, "compiled", release=True)
        deviation = describe_deviation(role, read_text(built[role], pair), expected, find_limit(pair, role))
        if deviation:
            for done in built.values():
                native.restore(done.model)
            return [build_models(pair, "eager")], deviation
    return [Models(built["target"], built.get("draft"), "compiled")], None


def choose_on_cuda(pair: Pair) -> Choice:
    refused = "; ".join(refusals(pair))
    models = build_models(pair, "eager" if refused else "compiled")
    reason = f"eager, since compiled is refused ({refused})" if refused else "compiled, not measured on CUDA"
    return Choice(models, torch.get_num_threads(), reason)


def find_deviation(compiled: Candidate, eager: Candidate, pair: Pair) -> str | None:
    """Where the compiled models' logits leave eager's by more than rounding explains; None where nowhere."""
    for role in ("target", "draft"):
        if getattr(eager.models, role) is None:
            continue
        read = []
        for candidate in (compiled, eager):
            use_threads(candidate)
            read.append(read_text(getattr(candidate.models, role), pair))
        deviation = describe_deviation(role, *read, find_limit(pair, role))
        if deviation:
            return deviation
    return None


def find_limit(pair: Pair, role: str) -> float:
    return max(ROUNDING[pair.dtype], FIXED_POINT if native.is_int8(getattr(pair, role)) else 0)


def describe_deviation(role: str, got: torch.Tensor, expected: torch.Tensor, limit: float) -> str | None:
    """What of compiled logits [tokens, vocab_size] rounding does not explain; None where it explains all."""
    chosen = expected.gather(1, got.argmax(dim=1, keepdim=True))[:, 0]
    shortfall = float((expected.amax(dim=1) - chosen).max())
    middle = float((got - expected).abs().median())
    # Written so that a NaN deviates
    if not (shortfall <= limit and middle <= limit / 2):
        return f"its {role} chooses tokens {shortfall:.2g} below eager's best logit, its logits differ by {middle:.2g}"
    return None


def made_text(pair: Pair, tokens: int) -> torch.Tensor:
    """Token ids that are the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(pair.vocab_size, (tokens,), generator=generator)


def read_text(model: Model, pair: Pair) -> torch.Tensor:
    """Logits [tokens - 1, vocab_size] of a short text, fed as decoding feeds it.

    Not those after its first token: there models have activations so large that eager rounds noticeably, and nobody decodes.
    """
    model.reset()
    return torch.cat([model.forward(feed, len(feed)) for feed in made_text(pair, sum(FEEDS)).split(FEEDS)])[1:]


def measure(candidates: list[Candidate], pair: Pair, deadline: float) -> None:
    """Bursts of every candidate in turn, so that a disturbance meets all, until the deadline; the first is always whole."""
    text, left = made_text(pair, PROMPT + BLOCK + 1), candidates
    for burst in range(BURSTS):
        for candidate in left:
            first = candidates[0].cost == float("inf")
            if perf_counter() > deadline and not first:
                return
            use_threads(candidate)
            if burst or is_worth_timing(candidate, min(other.step for other in candidates), text):
                time_burst(candidate, text, float("inf") if first else deadline)
        left = [candidate for candidate in left if candidate.cost <= DROP * min(candidates, key=rank).cost]
        if len(left) == 1:
            return


def is_worth_timing(candidate: Candidate, best_step: float, text: torch.Tensor) -> bool:
    """False after one step that is far slower than the best so far, as with more threads than there are idle cores."""
    candidate.models.target.reset()
    candidate.step = time_calls(candidate.models.target, text[:1], 1, calls=1)
    return candidate.step <= GIVE_UP * best_step


def time_burst(candidate: Candidate, text: torch.Tensor, deadline: float) -> None:
    """BURST calls of each kind. One that is cut by the deadline leaves the candidate as it was."""
    target, draft = candidate.models.target, candidate.models.draft
    prompt, block, single = text[:PROMPT], text[PROMPT:], text[PROMPT : PROMPT + 1]
    kinds = [(target, single, 1), (target, block, len(block))] + ([] if draft is None else [(draft, single, 1)])
    for model in (target, draft):
        if model is not None:
            model.reset()
            model.forward(prompt, 1)
    took = []
    for model, feed, keep in kinds:
        if perf_counter() > deadline:
            return
        took.append(time_calls(model, feed, keep))
    candidate.step, candidate.verify = min(candidate.step, took[0]), min(candidate.verify, took[1])
    if draft is not None:
        candidate.draft = min(candidate.draft or float("inf"), took[2])


def time_calls(model: Model, feed: torch.Tensor, keep: int, calls: int = BURST) -> float:
    """Median milliseconds of forwards after what the cache holds, each taken back."""
    length, took = model.length, []
    for _ in range(calls):
        start = perf_counter()
        model.forward(feed, keep)
        took.append(perf_counter() - start)
        model.crop(length)
    return median(took) * 1e3


def use_threads(candidate: Candidate) -> None:
    torch.set_num_threads(candidate.threads)
    for model in (candidate.models.target, candidate.models.draft):
        if isinstance(model, native.NativeModel):
            model.threads = candidate.threads


def rank(candidate: Candidate) -> tuple[float, float]:
    """Cheapest first; those that were given up have no cost and follow by their first step."""
    return candidate.cost, candidate.step


def thread_counts(threads: int | None) -> list[int]:
    """All cores, and ... 4, 2, 1; the given number alone where there is one."""
    if threads is not None:
        return [threads]
    cores = available_cores()
    return sorted({cores, *(2**power for power in range(cores.bit_length()))}, reverse=True)


def explain(best: Candidate, candidates: list[Candidate], rejected: str | None) -> str:
    rivals = [other for other in candidates if other.models is not best.models]
    times = f"{best.title}: one target step {best.step:.3g} ms"
    rival = min(rivals, key=rank, default=best)
    if rival.step < float("inf") and rival is not best:
        times += f", {rival.title} {rival.step:.3g} ms"
    return times + (f"; compiled was not chosen ({rejected})" if rejected else "")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
