"""What does a round cost beside its forwards? python benchmarks/overhead.py [options] [KEY=VALUE ...]

Both models' forwards are timed from inside the loop (on CUDA with events, so that nothing waits), and a round's time from
outside: the share that is left goes into drawing, judging, cropping, host reads and the policy. Host reads are transfers
from device to host, each of which waits for the device. The prompt's forwards are left out. Decoding without a draft, at a
fixed gamma and under both GammaTunes takes turns question by question, in each runtime, in the pair's own dtype or
runtime.dtype. The last line is one JSON object.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from gammatune.decoding.clock import Clock
from harness import (
    build_runtimes,
    describe_machine,
    make_parser,
    median_interval,
    print_machine,
    print_result,
    print_table,
    read_prompts,
    rotate,
    run_benchmark,
    time_call,
    to_records,
)
from tqdm import tqdm

from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Turn, prefill, run_round, start_turn
from gammatune.models.pair import load_pair
from gammatune.policies import POLICIES, Policy
from gammatune.runtimes.base import PairRuntime

POLICY_ARMS = {
    "autoregressive": POLICIES["ar"](),
    "fixed_5": POLICIES["fixed"](gamma=5),
    "gammatune": POLICIES["gammatune"](),
    "gammatune_plus": POLICIES["gammatune_plus"](),
}


@dataclass
class Stopwatch:
    """Time inside the forwards of one runtime's models, from marks before and after each."""

    runtime: PairRuntime
    clock: Clock
    marks: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        for model in (self.runtime.target, self.runtime.draft):
            model.forward = self.watch(model.forward)

    def watch(self, forward: Callable) -> Callable:
        def watched(*args, **options):
            start = self.clock.mark()
            logits = forward(*args, **options)
            self.marks.append((start, self.clock.mark()))
            return logits

        return watched

    def take_ms(self) -> float:
        """Milliseconds since the last call; the device must be done."""
        total = sum(self.clock.between(start, end) for start, end in self.marks)
        self.marks.clear()
        return total


@dataclass
class Arm:
    name: str
    policy: Policy
    watch: Stopwatch

    def answer(self, prompt: list[int], tokens: int) -> dict:
        """The rounds of one answer: how many, their ms in all and inside forwards, host reads."""
        runtime, clock = self.watch.runtime, self.watch.clock
        self.policy.reset()
        turn = start_turn(runtime, prompt, self.policy, DecodeConfig(max_new_tokens=tokens), seed=0)
        time_call(clock, lambda: prefill(turn))
        self.watch.take_ms()
        before = runtime.host_reads
        _, seconds = time_call(clock, lambda: run_rounds(turn))
        reads = runtime.host_reads - before
        return {"rounds": len(turn.rounds), "ms": seconds * 1e3, "inside_ms": self.watch.take_ms(), "reads": reads}


def run_rounds(turn: Turn) -> None:
    while not turn.finished:
        run_round(turn)


def measure(arms: list[Arm], prompts: list[list[int]], options) -> pd.DataFrame:
    """One row per (arm, question, repeat); a first answer of each arm is left out."""
    rows, step = [], 0
    with tqdm(total=len(arms) * (1 + options.repeats * len(prompts)), unit="answer", disable=None) as bar:
        for arm in arms:
            arm.answer(prompts[0], options.tokens)
            bar.update()
        for repeat in range(options.repeats):
            for question, prompt in enumerate(prompts):
                for arm in rotate(arms, step):
                    where = {"policy": arm.name, "runtime": arm.watch.runtime.name, "question": question, "repeat": repeat}
                    rows.append(where | arm.answer(prompt, options.tokens))
                    bar.update()
                step += 1
    return pd.DataFrame(rows)


def tabulate(measured: pd.DataFrame) -> pd.DataFrame:
    """Medians over questions of what a question's median repeat had; low and high bound the share's (95 %)."""
    outside = measured["ms"] - measured["inside_ms"]
    found = measured.assign(
        share_outside=outside / measured["ms"],
        round_ms=measured["ms"] / measured["rounds"],
        outside_ms=outside / measured["rounds"],
        reads_per_round=measured["reads"] / measured["rounds"],
    )
    figures = ["share_outside", "round_ms", "outside_ms", "reads_per_round"]
    questions = found.groupby(["policy", "runtime", "question"], sort=False)[figures].median()
    arms = questions.groupby(level=["policy", "runtime"], sort=False)
    bounds = arms["share_outside"].apply(bound_median).unstack()
    return arms.median().join(bounds).reset_index()


def bound_median(values: pd.Series) -> pd.Series:
    return pd.Series(median_interval(values)[1:], index=["low", "high"])


def report(options, config: RunConfig) -> int:
    pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    watches = [Stopwatch(runtime, Clock(pair.device)) for runtime in build_runtimes(pair).values()]
    arms = [Arm(name, policy, watch) for watch in watches for name, policy in POLICY_ARMS.items()]
    table, machine = tabulate(measure(arms, prompts, options)), describe_machine(pair.device)
    print_machine(machine)
    print_table(table, 4)
    share = table.set_index(["policy", "runtime"]).loc[("fixed_5", "eager"), "share_outside"]
    print_result(
        {
            "eager_fixed_5_share": float(share),
            "dtype": str(pair.dtype).removeprefix("torch."),
            **machine,
            "pair": pair.name,
            "rows": to_records(table),
        }
    )
    return 0


def main(words: list[str]) -> int:
    numbers = {
        "questions": (6, 2, "prompts, of the first turns of the tasks"),
        "tokens": (64, 2, "longest answer"),
        "repeats": (1, 1, "passes over all prompts"),
    }
    return run_benchmark(make_parser(__doc__, numbers, dtypes=False), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
