"""How near is a decode step to what memory allows? python benchmarks/roofline.py [options] [KEY=VALUE ...]

At batch size 1 a step must read every matrix and the cached keys and values once. The cost card says how many bytes that is
and how long it takes at the bandwidth measured here: the floor. Then steps are measured: one new token for target and draft,
and blocks of 2, 6 and 16 tokens that the target verifies. A draft step comes before each target step, as in decoding,
since what one model leaves in the caches is time for the other. The floor is for weights that come from memory: a model that
fits the caches can be faster. Only the forward is timed, not the crop after it. The last line is one JSON object.
"""

import random
import sys
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from bandwidth import COPY_MIB, Bandwidth, measure_bandwidth
from gammatune.decoding.clock import Clock
from harness import (
    build_runtimes,
    describe_machine,
    load_pairs,
    make_parser,
    median_interval,
    print_machine,
    print_result,
    print_table,
    rotate,
    run_benchmark,
    time_call,
    to_records,
)
from torch import nn
from tqdm import tqdm

from gammatune.config import RunConfig
from gammatune.errors import UserError
from gammatune.models.load import count_cache
from gammatune.models.pair import Pair
from gammatune.runtimes.base import PairRuntime

BLOCKS = (1, 2, 6, 16)
ROLES = ("target", "draft")


@dataclass(frozen=True)
class Floor:
    """What one step of a model must read, in bytes."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache

    def ms(self, gbps: float) -> float:
        return self.total / gbps / 1e6


@dataclass
class Arm:
    """A pair's runtime in one dtype, its caches filled with `context` tokens."""

    dtype: str
    runtime: PairRuntime
    context: int

    def fill(self, tokens: torch.Tensor) -> None:
        self.runtime.reset()
        for role in ROLES:
            getattr(self.runtime, role).forward(tokens, keep=1)

    def step(self, role: str, tokens: torch.Tensor, clock: Clock) -> float:
        """Milliseconds of one forward over tokens [n], with logits for all of them; the cache is as before."""
        model = getattr(self.runtime, role)
        seconds = time_call(clock, partial(model.forward, tokens, keep=tokens.shape[0]))[1]
        model.crop(self.context)
        return seconds * 1e3


def count_floor(model: nn.Module, dtype: torch.dtype, context: int) -> Floor:
    """All matrices, as they are held, and the cache. An embedding counts where it is the output head too, and only once."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    weights = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    return Floor(weights, count_cache(model.config, dtype, context))


def write_card(pairs: dict[str, Pair], context: int) -> dict[tuple[str, str], Floor]:
    """By (role, dtype)."""
    return {
        (role, dtype): count_floor(getattr(pair, role), pair.dtype, context)
        for dtype, pair in pairs.items()
        for role in ROLES
    }


def print_card(card: dict[tuple[str, str], Floor], bandwidth: Bandwidth, context: int) -> None:
    print(f"Memory reads at {bandwidth.read_gbps:.1f} GB/s ({bandwidth.read_by}), copies at {bandwidth.copy_gbps:.1f} GB/s.")
    print(f"One step must read, behind {context} tokens:\n")
    columns = ["model", "dtype", "weights_mb", "cache_mb", "floor_ms"]
    rows = [(*key, f.weights / 1e6, f.cache / 1e6, f.ms(bandwidth.read_gbps)) for key, f in card.items()]
    print_table(pd.DataFrame(rows, columns=columns), 3)


def measure(arms: list[Arm], repeats: int, clock: Clock) -> pd.DataFrame:
    """Milliseconds per (model, dtype, runtime, tokens) and repeat. Each arm's burst begins with untimed steps."""
    text = random_tokens(arms[0])
    for arm in arms:
        arm.fill(text[: arm.context])
        measure_burst(arm, text, clock)
    rows = []
    for repeat in tqdm(range(repeats), unit="pass", disable=None):
        for arm in rotate(arms, repeat):
            rows += measure_burst(arm, text, clock)
    return pd.DataFrame(rows, columns=["model", "dtype", "runtime", "tokens", "ms"])


def random_tokens(arm: Arm) -> torch.Tensor:
    pair = arm.runtime.pair
    ids = random.Random(0).choices(range(pair.vocab_size), k=arm.context + max(BLOCKS))
    return arm.runtime.upload(ids)


def measure_burst(arm: Arm, text: torch.Tensor, clock: Clock) -> list[tuple]:
    """A draft step, then a target step, for each block length; the first two are left out, since they find cold caches."""
    rows, behind = [], text[arm.context :]
    for tokens in BLOCKS[:1] + BLOCKS:
        for role, fed in (("draft", 1), ("target", tokens)):
            rows.append((role, arm.dtype, arm.runtime.name, fed, arm.step(role, behind[:fed], clock)))
    return rows[2:]


def tabulate(times: pd.DataFrame, card: dict[tuple[str, str], Floor], bandwidth: Bandwidth) -> pd.DataFrame:
    """One row per kind of step; low and high bound the median (95 %)."""
    rows = []
    for (model, dtype, runtime, tokens), group in times.groupby(["model", "dtype", "runtime", "tokens"]):
        floor = card[model, dtype]
        median, low, high = median_interval(group["ms"])
        speed = floor.total / median / 1e6
        row = {"model": model, "dtype": dtype, "runtime": runtime, "tokens": tokens}
        row |= {
            "floor_ms": floor.ms(bandwidth.read_gbps),
            "ms": median,
            "low": low,
            "high": high,
            "gbps": speed,
            "share": speed / bandwidth.read_gbps,
        }
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["model", "tokens", "dtype", "runtime"], ascending=[False, True, True, True])


def fastest_target(table: pd.DataFrame) -> dict:
    """Of plain decode steps of the target: the fastest, and its share of the bandwidth."""
    steps = table[(table["model"] == "target") & (table["tokens"] == 1)]
    best = steps.loc[steps["ms"].idxmin()]
    return {"target_share": float(best["share"]), "runtime": best["runtime"], "dtype": best["dtype"]}


def require_room(pairs: dict[str, Pair], context: int) -> None:
    pair = next(iter(pairs.values()))
    room = pair.context - max(BLOCKS)
    if context > room:
        raise UserError(
            f"--context {context} leaves no room for a block of {max(BLOCKS)} tokens, since {pair.name} addresses "
            f"{pair.context}: choose at most {room}."
        )


def report(options, config: RunConfig) -> int:
    pairs = load_pairs(config, options.dtypes)
    require_room(pairs, options.context)
    device = next(iter(pairs.values())).device
    machine, bandwidth = describe_machine(device), measure_bandwidth(device, options.copy_mib)
    card = write_card(pairs, options.context)
    print_machine(machine)
    print_card(card, bandwidth, options.context)
    arms = [Arm(d, runtime, options.context) for d, pair in pairs.items() for runtime in build_runtimes(pair).values()]
    table = tabulate(measure(arms, options.repeats, Clock(device)), card, bandwidth)
    print()
    print_table(table, 3)
    speeds = {"bandwidth_gbps": bandwidth.read_gbps, "copy_gbps": bandwidth.copy_gbps}
    print_result({**fastest_target(table), **speeds, "context": options.context, **machine, "rows": to_records(table)})
    return 0


def main(words: list[str]) -> int:
    numbers = {"context": (512, 1, "tokens in the caches"), "repeats": (40, 2, "timed passes"), "copy_mib": COPY_MIB}
    return run_benchmark(make_parser(__doc__, numbers), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
