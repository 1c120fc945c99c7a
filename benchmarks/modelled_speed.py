<<<<<<< HEAD
"""Do priced replays agree with the clock? python benchmarks/modelled_speed.py [--run RUN_DIR] [--prices FILE] [KEY=VALUE]

Every arm of a finished greedy run is replayed from the run's own acceptance table and priced; its modelled tokens per second
stand beside the measured ones, both as sums over all questions. Without --run, a run of the demo questions with all policies
is made first; without --prices, they are measured. KEY=VALUE settings go to both. The machine must be quiet. A policy's own
time is no part of a price: its share of the measured time has a column. The last line is one JSON object.
=======
"""Do priced replays agree with the clock? python benchmarks/modelled_speed.py --run RUN_DIR --prices FILE

Every arm of a finished greedy run (`python run.py ...`) is replayed from the run's own acceptance table and priced
(`python -m gammatune prices ...`, same settings, quiet machine); its modelled tokens per second stand beside the measured
ones, both as sums over all questions. A policy's own time is no part of a price: its share of the measured time has a
column. The last line is one JSON object.
>>>>>>> w-d
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import print_report
from scipy import stats

from gammatune.errors import UserError, complain
from gammatune.policies import POLICIES
from gammatune.replay.prices import CostCurve, read_cost
from gammatune.replay.speeds import Bench, build_bench
from gammatune.replay.table import read_table
from gammatune.runs.store import Arm, StoredRun, read_run

<<<<<<< HEAD
LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
DEMO = ["experiment=demo", f"policy=[{','.join(LIVE)}]"]


def make_run(settings: list[str]) -> Path:
    from gammatune.runs.runner import Runner

    runner = Runner(compose_config(DEMO + settings))
    runner.run()
    return runner.folder.path


def measure_prices(settings: list[str]) -> CostCurve:
    from gammatune.studies.measure_prices import CostRun, Plan

    return CostRun(compose_config(settings), Plan()).run()

=======
>>>>>>> w-d

def require_same(run: StoredRun, curve: CostCurve) -> None:
    """Raises UserError where the prices are of another pair, device or precision than the run."""
    there = run.facts | {name: run.facts["runtime"][name] for name in ("device", "dtype")}
    other = [name for name in ("pair", "weights", "device", "dtype") if curve.facts.get(name) != there.get(name)]
    if other:
        raise UserError(
            f"The prices and the run {run.name} differ in {', '.join(other)}: measure prices with the run's settings."
        )


def compare(arm: Arm, bench: Bench) -> dict:
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
    run, curve = read_run(options.run), read_cost(options.prices)
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
<<<<<<< HEAD
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--prices", type=Path, metavar="FILE")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(words)
=======
>>>>>>> w-d
    try:
        report(build_parser().parse_args(words))
    except Exception as error:
        return complain(error)
    return 0


<<<<<<< HEAD
def report(options: argparse.Namespace) -> None:
    curve = read_cost(options.prices) if options.prices else None
    run = read_run(options.run or make_run(options.settings))
    table = read_table(run.path / "acceptance.parquet")
    curve = curve or measure_prices(options.settings)
    require_same(run, curve)
    arms = add_speedups(pd.DataFrame([compare(arm, table, curve) for arm in run.arms]))
    print(arms.round(3).to_markdown(index=False))
    records = json.loads(arms.round(4).to_json(orient="records"))
    print(json.dumps({"run_dir": str(run.path), "prices": str(options.prices) if options.prices else None, "arms": records}))


=======
>>>>>>> w-d
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
