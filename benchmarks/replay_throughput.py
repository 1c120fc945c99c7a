"""How fast is replay? python benchmarks/replay_throughput.py [TABLE]

Replays and prices 1,000 settings of GammaTune (length-only) and 1,000 of GammaTune+ (asked after every draft token) over an
acceptance table, on all cores. The last line is one JSON object.
"""

import argparse
import json
import os
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import Bench, build_bench, measure_speeds
from gammatune.replay.table import read_table

REFERENCE = Path("results/reference/smollm2-draft-135m-specbench/acceptance.parquet")
ETAS, DELTAS, LEAST, MOST, TAUS = (
    (0.1, 0.2, 0.3, 0.5, 0.8),
    (1, 2, 3, 4),
    (1, 2, 3, 4, 5),
    tuple(range(6, 16)),
    (0.2, 0.3, 0.4, 0.5, 0.6),
)


def build_grids() -> dict[str, list[Policy]]:
    """1,000 different settings of each policy."""
    lengths = [{"eta": e, "delta": d, "gamma_min": a, "gamma_max": b} for e, d, a, b in product(ETAS, DELTAS, LEAST, MOST)]
    watching = [{"eta": e, "delta": d, "gamma_max": b, "tau": t} for e, d, b, t in product(ETAS, DELTAS, MOST, TAUS)]
    return {
        "gammatune": [POLICIES["gammatune"](**setting) for setting in lengths],
        "gammatune_plus": [POLICIES["gammatune_plus"](**setting) for setting in watching],
    }


def time_grid(bench: Bench, policies: list[Policy]) -> dict:
    started = time.perf_counter()
    measure_speeds(bench, policies)
    seconds = time.perf_counter() - started
    return {"settings": len(policies), "seconds": seconds, "settings_per_second": len(policies) / seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, default=REFERENCE, metavar="TABLE")
    try:
        table = read_table(parser.parse_args().table)
        bench = build_bench(table, from_ratio(4.5))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = {name: time_grid(bench, policies) for name, policies in build_grids().items()}
    frame = pd.DataFrame(found).T.rename_axis("policy").reset_index()
    print(frame.to_markdown(index=False, tablefmt="simple", floatfmt=".1f"))
    print(json.dumps({"tokens": table.tokens, "cores": len(os.sched_getaffinity(0)), **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
