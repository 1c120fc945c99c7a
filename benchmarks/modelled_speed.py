"""Do priced replays agree with the clock? python benchmarks/modelled_speed.py --run RUN_DIR --prices FILE

Every arm of a finished greedy run (`python run.py ...`) is replayed from the run's own acceptance table and priced
(`gammatune prices ...`, same settings, quiet machine); its modelled tokens per second stand beside the measured
ones, both as sums over all questions. A policy's own time is no part of a price: its share of the measured time has a
column. The last line is one JSON object.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import print_report
from scipy import stats

from gammatune.errors import UserError, exit_code_of
from gammatune.policies import POLICIES
from gammatune.replay.prices import PriceList, read_prices
from gammatune.replay.speeds import Bench, build_bench
from gammatune.replay.table import read_table
from gammatune.runs.store import StoredArm, StoredRun, read_run


def require_same(run: StoredRun, curve: PriceList) -> None:
    """Raises UserError where the prices are of another pair, device, precision, runtime or thread count than the run."""
    names = ("pair", "weights", "device", "dtype", "runtime", "threads")
    ran, priced = run.facts["runtime"], curve.facts.get("runtime", {})
    there = run.facts | {name: ran[name] for name in ("device", "dtype")}
    there |= {"runtime": ran["name"], "threads": run.arms[0].provenance.get("threads")}
    here = curve.facts | {"runtime": priced.get("name"), "threads": priced.get("threads")}
    other = [name for name in names if here.get(name) != there.get(name)]
    if other:
        raise UserError(
            f"The prices and the run {run.name} differ in {', '.join(other)}: measure prices with the run's settings."
        )


def compare(arm: StoredArm, bench: Bench) -> dict:
    """Speeds in tokens per second; ratio: modelled over live, with a 95 % interval over questions."""
    rows = [(t.question_id, len(t.output_ids), t.wall_ms, sum(r.policy_ms for r in t.rounds)) for t in arm.turns]
    live = pd.DataFrame(rows, columns=["question", "tokens", "ms", "policy_ms"]).groupby("question").sum()
    seconds = bench.tokens / bench.speeds(POLICIES[arm.policy](**arm.settings))
    repetitions = 1 + max(turn.repetition for turn in arm.turns)
    modelled = pd.Series(seconds * 1e3 * repetitions, index=bench.question_id).reindex(live.index)
    tokens = live["tokens"].sum() * 1e3
    found = {"arm": arm.label, "live": tokens / live["ms"].sum(), "modelled": tokens / modelled.sum()}
    found |= {"ratio": found["modelled"] / found["live"]} | bound_ratio(live["ms"].to_numpy(), modelled.to_numpy())
    return found | {"policy_share": live["policy_ms"].sum() / live["ms"].sum()}


def bound_ratio(upper: np.ndarray, lower: np.ndarray) -> dict:
    """95 % bootstrap interval of sum(upper) / sum(lower) over questions [n]; none for one question."""
    if len(upper) < 2:
        return {"low": None, "high": None}
    settings = {"paired": True, "method": "percentile", "rng": np.random.default_rng(0)}
    drawn = stats.bootstrap((upper, lower), lambda u, v, axis: u.sum(axis=axis) / v.sum(axis=axis), **settings)
    return {name: float(getattr(drawn.confidence_interval, name)) for name in ("low", "high")}


def report(options: argparse.Namespace) -> None:
    run, curve = read_run(options.run), read_prices(options.prices)
    require_same(run, curve)
    bench = build_bench(read_table(run.path / "acceptance.parquet"), curve)
    arms = pd.DataFrame([compare(arm, bench) for arm in run.arms])
    alone = arms[arms["arm"] == "ar"]
    for kind in ("live", "modelled"):
        arms[f"{kind}_speedup"] = arms[kind] / alone[kind].iloc[0] if len(alone) else None
    print_report([arms], {"run_dir": str(options.run), "prices": str(options.prices)}, torch.device("cpu"))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR")
    parser.add_argument("--prices", type=Path, required=True, metavar="FILE")
    return parser


def main(words: list[str]) -> int:
    try:
        report(build_parser().parse_args(words))
    except Exception as error:
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
