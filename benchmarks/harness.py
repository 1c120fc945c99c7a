"""What the benchmarks share: the command line, pairs and prompts, time, intervals, and the report's last line."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable

# Progress belongs to the benchmark: transformers' own bars for loading weights would come between its lines
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pandas as pd
import torch
import transformers
from scipy import stats

from gammatune.compose import compose_config
from gammatune.config import DTYPES, RUNTIMES, RunConfig, one_of
from gammatune.decoding.clock import Clock
from gammatune.errors import UserError, exit_code_of
from gammatune.models.devices import choose_device
from gammatune.models.pairs import Pair, load_pair
from gammatune.runs.provenance import name_device
from gammatune.runtimes.base import PairRuntime, build_runtime
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.specbench import load_questions

CPU_DTYPES = "bf16,fp32"


def make_parser(doc: str, numbers: dict[str, tuple[int, int, str]], dtypes: bool = True) -> argparse.ArgumentParser:
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
    """report(options, config) -> exit code; 2, with one sentence on stderr, for an error that the user can mend."""
    options = parser.parse_intermixed_args(words)
    transformers.logging.set_verbosity_error()
    try:
        refuse_small(options)
        config = compose_config(options.settings)
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        return report(options, config)
    except Exception as error:
        return exit_code_of(error)


def refuse_small(options: argparse.Namespace) -> None:
    for name, least in options.least.items():
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be {least} or more.")


def load_pairs(config: RunConfig, dtypes: str | None) -> dict[str, Pair]:
    """One pair per name in `dtypes` (comma-separated). Without: runtime.dtype, else both on a CPU, the pair's on a GPU."""
    device = choose_device(config.runtime.device)
    usual = CPU_DTYPES if device.type == "cpu" else config.model_pair.dtype
    names = list(dict.fromkeys((dtypes or config.runtime.dtype or usual).split(",")))
    for name in names:
        one_of("--dtypes", name, DTYPES)
    return {name: load_pair(config.model_pair, config.runtime.device, name) for name in names}


def build_runtimes(pair: Pair) -> dict[str, PairRuntime]:
    """By name; without "compiled" where the pair has no such form here."""
    built = [build_runtime(pair, name) for name in RUNTIMES]
    return {runtime.name: runtime for runtime in built}


def read_prompts(pair: Pair, config: RunConfig, questions: int, tokens: int) -> list[list[int]]:
    """Ids of the first turn of the first `questions` questions. Raises UserError where answers of `tokens` do not fit."""
    found = load_questions(config.tasks).questions
    if questions > len(found):
        raise UserError(f"--questions {questions} is more than tasks {config.tasks.name} has: choose at most {len(found)}.")
    prompts = [build_prompt(pair.chat_template, pair.tokenizer, q.turns[:1], []) for q in found[:questions]]
    room = pair.context - max(map(len, prompts))
    if room < tokens:
        raise UserError(
            f"--tokens {tokens} does not fit behind the longest prompt of {pair.context - room} tokens, since {pair.name} "
            f"addresses {pair.context}: choose at most {room}, or other tasks."
        )
    return prompts


def time_call(clock: Clock, work: Callable):
    """(what work() returns, wall seconds until the device is done)."""
    clock.synchronize()
    started = time.perf_counter()
    made = work()
    clock.synchronize()
    return made, time.perf_counter() - started


def rotate(arms: list, step: int) -> list:
    """The same arms, each of them first in turn, so that drift of the machine hits all alike."""
    start = step % len(arms)
    return arms[start:] + arms[:start]


def median_interval(values) -> tuple[float, float, float]:
    """(median, low, high): 95 % percentile bootstrap of the median of values [n], n >= 2."""
    drawn = stats.bootstrap((np.asarray(values),), np.median, method="percentile", rng=np.random.default_rng(0))
    return float(np.median(values)), *map(float, drawn.confidence_interval)


def describe_machine(device: torch.device) -> dict:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name_device(device), "threads": torch.get_num_threads(), "versions": versions}


def print_machine(machine: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['device']}, {machine['threads']} threads, {versions}\n")


def print_table(frame: pd.DataFrame, digits: int) -> None:
    """Markdown; a value that a row does not have leaves its field empty."""
    shown = frame.round(digits).astype(object).where(frame.notna(), None)
    print(shown.to_markdown(index=False, missingval=""), flush=True)


def to_records(frame: pd.DataFrame) -> list[dict]:
    """Rows as plain JSON; a value that a row does not have is null."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def print_result(result: dict) -> None:
    """The last line. NaN is no JSON, so a result that holds one is a defect."""
    print(json.dumps(result, allow_nan=False))
