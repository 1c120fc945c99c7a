"""How many tokens should the draft be able to say? python benchmarks/draft_head.py [options] [KEY=VALUE ...]

Where a draft has few layers, most of its step is the output head. For each size of head: T_draft (median ms of a step that
picks one token, behind a target step as in real decoding, sizes in turn), then live greedy answers under fixed gamma 5,
GammaTune and GammaTune+, sizes in turn question by question: acceptance rate, mean accepted tokens (emitted per round),
tokens per second, and their ratio to the whole head's with a 95 % bootstrap interval over questions. One set of target
weights serves all. `best` is the fastest size over all three policies, null for the whole head. The last line is one JSON
object.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from gammatune.decoding.clock import Clock
from harness import (
    describe_machine,
    make_parser,
    print_machine,
    print_result,
    print_table,
    read_prompts,
    rotate,
    run_benchmark,
    time_call,
    to_records,
)
from scipy import stats
from tqdm import tqdm

from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Generation, generate_speculative
from gammatune.decoding.sampling import find_best, name_tokens
from gammatune.errors import UserError
from gammatune.models import draft_vocabulary, sources
from gammatune.models.pair import Pair, load_pair, reduce_draft
from gammatune.policies import POLICIES
from gammatune.runtimes.base import PairRuntime, build_runtime

NUMBERS = {
    "questions": (6, 2, "first turns answered"),
    "tokens": (48, 2, "new tokens at most per answer"),
    "steps": (60, 2, "draft steps timed per size"),
}
SIZES = "2048,4096,8192,16384"
ALL = "all"
ARMS = {"fixed_5": ("fixed", {"gamma": 5}), "gammatune": ("gammatune", {}), "gammatune_plus": ("gammatune_plus", {})}
CONTEXT = 256


def parse_sizes(words: str) -> list[int]:
    """Raises UserError for anything but whole numbers of 1 or more."""
    parts = words.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--heads {words} must be whole numbers of 1 or more with commas between, such as {SIZES}.")
    return sorted({int(part) for part in parts})


def load_whole(config: RunConfig) -> Pair:
    draft = replace(config.model_pair.draft, vocabulary=None)
    return load_pair(replace(config.model_pair, draft=draft), config.runtime.device, config.runtime.dtype)


def find_ranking(config: RunConfig, largest: int, vocab_size: int) -> np.ndarray:
    """The ranking that the pair's config names, checked to be as long as the largest head."""
    pair = config.model_pair
    made_up = pair.source == "tiny-random" or pair.weights == "random"
    folder = None if made_up else sources.locate("draft", pair.draft, pair.source).folder
    return draft_vocabulary.find_ranking(replace(pair.draft, vocabulary=largest), vocab_size, folder)


def build_heads(config: RunConfig, sizes: list[int]) -> dict[str, PairRuntime]:
    """A runtime per size of head, the whole one last; they share the target's."""
    pair = load_whole(config)
    ranking = find_ranking(config, max(sizes), pair.vocab_size)
    whole = build_runtime(pair, config.runtime.name)
    runtimes = {}
    for size in sizes:
        reduced = reduce_draft(pair, size, ranking)
        # Two drafts in place of the pair: the target's weights need not be laid out again
        draft = build_runtime(replace(reduced, target=pair.draft), config.runtime.name).draft
        runtimes[str(size)] = PairRuntime(reduced, whole.target, draft, name=whole.name)
    return {**runtimes, ALL: whole}


def pick_token(runtime: PairRuntime, token: torch.Tensor) -> torch.Tensor:
    """One draft step: token [1] to the draft's greedy token [1]."""
    return name_tokens(find_best(runtime.draft.forward(token, keep=1)), runtime.draft.ids)


def time_steps(runtimes: dict[str, PairRuntime], prompt: list[int], steps: int) -> pd.Series:
    """Median ms of a draft step by size, at the prompt's length, the caches as they were after each."""
    whole = runtimes[ALL]
    clock, tokens, length = Clock(whole.device), whole.upload(prompt), len(prompt) - 1
    for runtime in runtimes.values():
        runtime.reset()
        runtime.draft.forward(tokens[:-1], keep=1)
    whole.target.forward(tokens[:-1], keep=1)
    times = {size: [] for size in runtimes}
    for step in range(-3, steps):  # the first rounds warm up
        for size in rotate(list(runtimes), step):
            runtime = runtimes[size]
            whole.target.forward(tokens[-1:], keep=1)
            _, seconds = time_call(clock, partial(pick_token, runtime, tokens[-1:]))
            whole.target.crop(length)
            runtime.draft.crop(length)
            times[size] += [seconds * 1e3] if step >= 0 else []
    return pd.Series({size: float(np.median(found)) for size, found in times.items()})


def answer(runtime: PairRuntime, arm: str, tokens: int, prompt: list[int]) -> Generation:
    name, settings = ARMS[arm]
    return generate_speculative(runtime, prompt, POLICIES[name](**settings), DecodeConfig(max_new_tokens=tokens))


def answer_all(runtimes: dict[str, PairRuntime], prompts: list[list[int]], tokens: int) -> pd.DataFrame:
    """A row per answer: counts, rounds, seconds, and whether its ids are the same as with the whole head."""
    clock, rows = Clock(runtimes[ALL].device), []
    for size, arm in product(runtimes, ARMS):
        answer(runtimes[size], arm, min(tokens, 8), prompts[0])  # warms up, not counted
    for question, prompt in enumerate(tqdm(prompts, unit="question", disable=None, file=sys.stderr)):
        made = {key: measured for key, *measured in answer_question(runtimes, question, prompt, (clock, tokens))}
        for (size, arm), (generation, seconds) in made.items():
            same = generation.output_ids == made[ALL, arm][0].output_ids
            rows.append(
                {"head": size, "policy": arm, "question": question, **count(generation), "seconds": seconds, "same": same}
            )
    return pd.DataFrame(rows)


def answer_question(runtimes: dict[str, PairRuntime], question: int, prompt: list[int], how: tuple) -> Iterator[tuple]:
    """((size, policy), answer, seconds) of every size and policy, sizes in turn."""
    clock, tokens = how
    for arm in ARMS:
        for size in rotate(list(runtimes), question):
            yield (size, arm), *time_call(clock, partial(answer, runtimes[size], arm, tokens, prompt))


def count(generation: Generation) -> dict:
    return {
        "drafted": sum(r.drafted for r in generation.rounds),
        "accepted": sum(r.accepted for r in generation.rounds),
        "rounds": len(generation.rounds),
        "tokens": len(generation.output_ids),
    }


def summarise(answers: pd.DataFrame, steps: pd.Series) -> pd.DataFrame:
    """A row per size and policy."""
    rows = []
    groups = dict(list(answers.groupby(["head", "policy"])))
    for size, arm in product(steps.index, ARMS):
        part, whole = groups[size, arm], groups[ALL, arm]
        total = part[["drafted", "accepted", "rounds", "tokens", "seconds"]].sum()
        rows.append(
            {
                "head": size,
                "draft_step_ms": steps[size],
                "policy": arm,
                "acceptance_rate": total["accepted"] / total["drafted"] if total["drafted"] else float("nan"),
                "mean_accepted_tokens": total["tokens"] / total["rounds"],
                "tokens_per_second": total["tokens"] / total["seconds"],
                **compare(part, whole),
                "other_ids": int((~part["same"]).sum()),
            }
        )
    return pd.DataFrame(rows)


def compare(part: pd.DataFrame, whole: pd.DataFrame) -> dict:
    """Ratio of tokens per second and its 95 % bootstrap interval over questions."""

    def ratio(tokens, seconds, whole_tokens, whole_seconds, axis=-1):
        ours, theirs = (
            tokens.sum(axis=axis) / seconds.sum(axis=axis),
            whole_tokens.sum(axis=axis) / whole_seconds.sum(axis=axis),
        )
        return ours / theirs

    samples = [frame[column].to_numpy(float) for frame in (part, whole) for column in ("tokens", "seconds")]
    if part.equals(whole):
        return {"ratio": 1.0, "low": 1.0, "high": 1.0}
    drawn = stats.bootstrap(samples, ratio, paired=True, method="percentile", rng=np.random.default_rng(0))
    return {"ratio": ratio(*samples), "low": drawn.confidence_interval.low, "high": drawn.confidence_interval.high}


def find_fastest(answers: pd.DataFrame) -> str:
    """The size with the most tokens per second over all policies and questions."""
    totals = answers.groupby("head", sort=False)[["tokens", "seconds"]].sum()
    return str((totals["tokens"] / totals["seconds"]).idxmax())


def report(options: argparse.Namespace, config: RunConfig) -> int:
    if not config.decode.greedy:
        raise UserError("Sizes are compared on the same answers, which takes greedy decoding: leave decode=greedy.")
    runtimes = build_heads(config, parse_sizes(options.heads))
    whole = runtimes[ALL]
    prompts = read_prompts(whole.pair, config, options.questions, options.tokens)
    machine = describe_machine(whole.device)
    print_machine(machine)
    context = (prompts[0] * CONTEXT)[: min(CONTEXT, whole.pair.context - 2)]
    steps = time_steps(runtimes, context, options.steps)
    answers = answer_all(runtimes, prompts, options.tokens)
    rows = summarise(answers, steps)
    print_table(rows, 3)
    best = find_fastest(answers)
    names = {"pair": whole.pair.name, "runtime": whole.name, "context": len(context), "questions": len(prompts)}
    print_result({"best": None if best == ALL else int(best), **names, "rows": to_records(rows), **machine})
    return 0


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, NUMBERS, dtypes=False)
    parser.add_argument("--heads", default=SIZES, metavar="N,N", help=f"sizes beside the whole head ({SIZES})")
    return run_benchmark(parser, report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
