"""What the benchmarks share: the command line, what decodes, arms measured in turn, medians with intervals, the report."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Progress belongs to the benchmark: transformers' own bars for loading weights would come between its lines
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pandas as pd
import torch
import transformers
from scipy import stats
from tqdm import tqdm

from gammatune.compose import compose_config
from gammatune.config import DTYPES, FORMS, DecodeConfig, RunConfig, one_of
from gammatune.decoding.exactness import Comparison, compare_answers
from gammatune.decoding.loop import Generation, build_engine, generate_speculative
from gammatune.errors import UserError, exit_code_of
from gammatune.machine import LoadWatch, name_cpu
from gammatune.models.devices import choose_device
from gammatune.models.pair import Pair, load_pair
from gammatune.policies import Policy
from gammatune.policies.session import PolicySession
from gammatune.runs.provenance import name_device
from gammatune.runs.session import DEPTH
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions

CPU_DTYPES = "bf16,fp32"
LOAD = LoadWatch()  # of this process's measurements


class Decoder:
    """A pair in a runtime: the only place where the benchmarks call into decoding."""

    def __init__(self, pair: Pair, runtime: str, threads: int | None = None, release: bool = False):
        """runtime, threads, release: as for build_engine."""
        self.pair, self.engine = pair, build_engine(pair, runtime, threads=threads, release=release)
        self.device, self.name = self.engine.device, self.engine.runtime  # the runtime that really runs
        self.models = {"target": self.engine.target, "draft": self.engine.drafter.workplace.model}

    def warm(self, longest: int) -> None:
        """Prepare every forward over texts of up to `longest` tokens, so that no timed call records a graph."""
        self.engine.warm(DEPTH, context=longest)

    def answer(self, prompt: list[int], policy: Policy, tokens: int) -> Generation:
        session = PolicySession(policy)
        session.restart()
        return generate_speculative(self.engine, prompt, session, DecodeConfig(max_new_tokens=tokens))

    def judge(self, prompt: list[int], reference: list[int], answer: list[int]) -> Comparison:
        return compare_answers(self.engine, prompt, reference, answer)

    def fill(self, tokens: list[int]) -> None:
        """Both caches hold the tokens."""
        for model in self.models.values():
            model.reset()
            model.forward(self.device.upload(tokens), keep=1)

    def forward(self, role: str, tokens: list[int]) -> float:
        """Milliseconds of one forward with logits for all of its tokens; the cache is as before."""
        model, fed = self.models[role], self.device.upload(tokens)
        length = model.length
        _, seconds = time_call(lambda: model.forward(fed, keep=len(tokens)), self.pair.device)
        model.crop(length)
        return seconds * 1e3


def build_decoders(pair: Pair) -> dict[str, Decoder]:
    """By name; without "compiled" where the pair has no such form here."""
    built = [Decoder(pair, name) for name in FORMS]
    return {decoder.name: decoder for decoder in built}


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared. work: an input to what else is to be noted of the call."""

    labels: dict
    work: Callable[..., dict]


def measure(arms: list[Arm], inputs: Iterable, device: torch.device, repeats: int = 1) -> pd.DataFrame:
    """A row per arm, input and repeat: labels, input (its number), repeat, seconds, and what `work` returned.

    Arms take turns input by input, each of them first in turn, so that drift of the machine hits all alike. The first call
    of each is left out.
    """
    rows, inputs, step = [], list(inputs), 0
    with tqdm(total=len(arms) * (1 + repeats * len(inputs)), unit="call", disable=None) as bar:
        for arm in arms:
            arm.work(inputs[0])
            bar.update()
        for repeat in range(repeats):
            for number, given in enumerate(inputs):
                LOAD.note()
                for arm in arms[step % len(arms) :] + arms[: step % len(arms)]:
                    found, seconds = time_call(lambda arm=arm, given=given: arm.work(given), device)
                    rows.append({**arm.labels, "input": number, "repeat": repeat, "seconds": seconds, **found})
                    bar.update()
                step += 1
    return pd.DataFrame(rows)


def time_call(work: Callable, device: torch.device):
    """(what work() returns, wall seconds until the device is done)."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    started = time.perf_counter()
    made = work()
    wait(device)
    return made, time.perf_counter() - started


class Speeds:
    """Tokens per second: a row per (input, repeat), a column per arm. Its three labels: kind, by whom, in which form."""

    def __init__(self, measured: pd.DataFrame, labels: list[str]):
        """measured: with the answers as `ids`."""
        speed = measured["ids"].map(len) / measured["seconds"]
        self.frame = measured.assign(speed=speed).pivot(index=["input", "repeat"], columns=labels, values="speed")

    def of(self, key: tuple) -> float:
        """Median over questions of what a question's median repeat had."""
        return float(self.frame[key].groupby(level="input").median().median())

    def ratios(self, ours: tuple, theirs: tuple) -> pd.Series:
        """Per question: the median over repeats of ours / theirs in the same repeat."""
        return (self.frame[ours] / self.frame[theirs]).groupby(level="input").median()

    def fastest(self, kinds: tuple[str, ...], by: tuple[str, ...], form: str | None = None) -> tuple | None:
        """The fastest arm among those of these kinds, by these, in one form or in any; None where there is none."""
        wanted = [key for key in self.frame if key[0] in kinds and key[1] in by and form in (None, key[2])]
        return max(wanted, key=self.of, default=None)


def median_interval(values) -> dict[str, float]:
    """median, low, high: 95 % percentile bootstrap of the median of values [n], n >= 2."""
    drawn = stats.bootstrap((np.asarray(values),), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = map(float, drawn.confidence_interval)
    return {"median": float(np.median(values)), "low": low, "high": high}


def tabulate(measured: pd.DataFrame, labels: list[str], figures: list[str], bounded: str) -> pd.DataFrame:
    """A row per arm: medians over inputs of what an input's median repeat had; low and high bound one of them (95 %)."""
    rows = []
    for key, group in measured.groupby(labels, sort=False):
        inputs = group.groupby("input")[figures].median()
        bounds = median_interval(inputs[bounded])
        rows.append(
            dict(zip(labels, key, strict=True)) | inputs.median().to_dict() | {k: bounds[k] for k in ("low", "high")}
        )
    return pd.DataFrame(rows)


def make_parser(doc: str, numbers: dict[str, tuple[int, int, str]], dtypes: bool = False) -> argparse.ArgumentParser:
    """A parser for KEY=VALUE settings and one option per entry of `numbers`: its default, its least value, its help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, _, words) in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{words} ({default})")
    if dtypes:
        words = f"comma-separated: {', '.join(DTYPES)} ({CPU_DTYPES} on a CPU, on a GPU the pair's own)"
        parser.add_argument("--dtypes", metavar="NAMES", help=words)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="config settings, as for run.py")
    parser.set_defaults(least={name: least for name, (_, least, _) in numbers.items()})
    return parser


def run_benchmark(parser: argparse.ArgumentParser, report: Callable, words: list[str]) -> int:
    """report(options, config) -> exit code; 2, with one sentence on stderr, for an error that the user can fix."""
    options = parser.parse_intermixed_args(words)
    transformers.logging.set_verbosity_error()
    try:
        for name, least in options.least.items():
            if getattr(options, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be {least} or more.")
        config = compose_config(options.settings)
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        return report(options, config)
    except Exception as error:
        return exit_code_of(error)


def load_pairs(config: RunConfig, dtypes: str | None) -> dict[str, Pair]:
    """One pair per name in `dtypes` (comma-separated). Without: runtime.dtype, else both on a CPU, the pair's on a GPU."""
    device = choose_device(config.runtime.device)
    usual = CPU_DTYPES if device.type == "cpu" else config.model_pair.dtype
    names = list(dict.fromkeys((dtypes or config.runtime.dtype or usual).split(",")))
    for name in names:
        one_of("--dtypes", name, DTYPES)
    return {name: load_pair(config.model_pair, config.runtime.device, name) for name in names}


def read_prompts(pair: Pair, config: RunConfig, questions: int, tokens: int) -> list[list[int]]:
    """Ids of the first turn of the first `questions` questions. Raises UserError where answers of `tokens` do not fit."""
    found = load_questions(config.tasks).questions
    if questions > len(found):
        raise UserError(f"--questions {questions} is more than tasks {config.tasks.name} has: choose at most {len(found)}.")
    prompts = [build_prompt(pair.chat_template, pair.tokenizer, q.turns[:1], []) for q in found[:questions]]
    longest = max(map(len, prompts))
    if pair.context - longest < tokens:
        raise UserError(
            f"--tokens {tokens} does not fit after the longest prompt of {longest} tokens, since {pair.name} addresses "
            f"{pair.context}: choose at most {pair.context - longest}, or other tasks."
        )
    return prompts


def describe_machine(device: torch.device) -> dict:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"processor": name_cpu(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    return {"device": name_device(device), **machine, "versions": versions}


def print_report(tables: list[pd.DataFrame], result: dict, device: torch.device, digits: int = 3, notes: str = "") -> None:
    """The machine, tables as Markdown, whether others used it, notes, and as the last line one JSON object.

    That holds the result, the machine and the last table's rows. A value that a row does not have is an empty field, and
    null. NaN is no JSON, so a result that holds one is a defect.
    """
    machine = describe_machine(device)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    names = dict.fromkeys((machine["device"], machine["processor"]))
    print(f"{', '.join(names)}; {machine['threads']} threads on {machine['cores']} cores; {versions}\n")
    for table in tables:
        shown = table.round(digits).astype(object).where(table.notna(), None)
        print(shown.to_markdown(index=False, missingval=""), end="\n\n", flush=True)
    LOAD.note()
    if warning := LOAD.warning("times"):
        print(f"{warning}\n", flush=True)
    print(notes, end="\n" if notes else "")
    rows = json.loads(tables[-1].to_json(orient="records", double_precision=6))
    print(json.dumps({**result, **machine, "rows": rows}, allow_nan=False))
