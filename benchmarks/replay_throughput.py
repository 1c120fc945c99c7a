"""How fast is replay? python benchmarks/replay_throughput.py [TABLE]

Replays and prices 1,000 settings of GammaTune (length-only) and 1,000 of GammaTune+ (asked after every draft token) over an
acceptance table, on all cores. The last line is one JSON object.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from harness import print_report

from gammatune.errors import exit_code_of
from gammatune.policies import POLICIES, Policy
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench, measure_speeds
from gammatune.replay.table import read_table

REFERENCE = Path(__file__).parents[1] / "results/reference/smollm2-draft-135m-specbench/acceptance.parquet"
MOST = {"eta": (0.1, 0.2, 0.3, 0.5, 0.8), "gamma_max": tuple(range(6, 16)), "delta": (1, 2, 3, 4)}
GRIDS = {"gammatune": MOST | {"gamma_min": (1, 2, 3, 4, 5)}, "gammatune_plus": MOST | {"tau": (0.2, 0.3, 0.4, 0.5, 0.6)}}


def build_grid(name: str) -> list[Policy]:
    """1,000 different settings."""
    return [POLICIES[name](**dict(zip(GRIDS[name], values, strict=True))) for values in product(*GRIDS[name].values())]


def report(path: Path) -> None:
    table, rows = read_table(path), []
    bench = build_bench(table, from_ratio(4.5))
    for name in GRIDS:
        policies, started = build_grid(name), time.perf_counter()
        measure_speeds(bench, policies)
        seconds = time.perf_counter() - started
        rows.append((name, len(policies), seconds, len(policies) / seconds))
    columns = ["policy", "settings", "seconds", "settings_per_second"]
    print_report([pd.DataFrame(rows, columns=columns)], {"tokens": table.tokens}, torch.device("cpu"), digits=1)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, default=REFERENCE, metavar="TABLE")
    options = parser.parse_args(words)
    try:
        report(options.table)
    except Exception as error:
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
