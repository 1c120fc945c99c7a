"""Do priced replays agree with the clock? python benchmarks/modelled_speed.py [--run RUN_DIR] [--cost FILE] [KEY=VALUE ...]

Every arm of a finished greedy run is replayed from the run's own acceptance table and priced; its modelled tokens per second
stand beside the measured ones, both as sums over all questions. Without --run, a run of the demo questions with all policies
is made first; without --cost, prices are measured. KEY=VALUE settings go to both. The machine must be quiet. A policy's own
time is no part of a price: its share of the measured time has a column. The last line is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from gammatune.compose import compose_config
from gammatune.errors import UserError, exit_code_of
from gammatune.policies import POLICIES
from gammatune.replay.prices import CostCurve, price, read_cost
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.runs.store import Arm, StoredRun, read_run

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


def require_same(run: StoredRun, curve: CostCurve) -> None:
    """Raises UserError where the prices are of another pair, device or precision than the run."""
    there = run.facts | {name: run.facts["runtime"][name] for name in ("device", "dtype")}
    other = [name for name in ("pair", "weights", "device", "dtype") if curve.facts.get(name) != there.get(name)]
    if other:
        raise UserError(
            f"The prices and the run {run.name} differ in {', '.join(other)}: measure prices with the run's settings."
        )


def modelled_by_question(arm: Arm, table: AcceptanceTable, curve: CostCurve) -> pd.Series:
    """Milliseconds per question id, of one pass over the questions."""
    policy, walks = POLICIES[arm.policy](**arm.settings), prepare(table)
    priced = price(replay(walks, policy), walks, curve, policy.watches_draft, drafts=arm.policy != "ar")
    return pd.Series(priced, index=[walk.question_id for walk in walks]).groupby(level=0).sum()


def live_by_question(arm: Arm) -> pd.DataFrame:
    """Tokens, ms, and ms of the policy itself per question id, of all repetitions together."""
    rows = [
        (turn.question_id, len(turn.output_ids), turn.wall_ms, sum(r.policy_ms for r in turn.rounds)) for turn in arm.turns
    ]
    return pd.DataFrame(rows, columns=["question", "tokens", "ms", "policy_ms"]).groupby("question").sum()


def compare(arm: Arm, table: AcceptanceTable, curve: CostCurve) -> dict:
    """Speeds in tokens per second; ratio: modelled over live, with a 95 % interval over questions."""
    live = live_by_question(arm)
    repetitions = 1 + max(turn.repetition for turn in arm.turns)
    modelled = modelled_by_question(arm, table, curve).reindex(live.index) * repetitions
    low, high = ratio_interval(live["ms"].to_numpy(), modelled.to_numpy())
    return {
        "arm": arm.label,
        "live": live["tokens"].sum() / live["ms"].sum() * 1e3,
        "modelled": live["tokens"].sum() / modelled.sum() * 1e3,
        "ratio": live["ms"].sum() / modelled.sum(),
        "low": low,
        "high": high,
        "policy_share": live["policy_ms"].sum() / live["ms"].sum(),
    }


def ratio_interval(upper: np.ndarray, lower: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of sum(upper) / sum(lower) over questions [n]; NaN for one question."""
    if len(upper) < 2:
        return float("nan"), float("nan")
    drawn = stats.bootstrap(
        (upper, lower),
        lambda u, v, axis: u.sum(axis=axis) / v.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return tuple(drawn.confidence_interval)


def add_speedups(arms: pd.DataFrame) -> pd.DataFrame:
    """Speedups over the target alone, where the run has that arm."""
    baseline = arms[arms["arm"] == "ar"]
    for kind in ("live", "modelled"):
        arms[f"{kind}_speedup"] = arms[kind] / baseline[kind].iloc[0] if len(baseline) else float("nan")
    return arms


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--cost", type=Path, metavar="FILE")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(words)
    try:
        report(options)
    except Exception as error:
        return exit_code_of(error)
    return 0


def report(options: argparse.Namespace) -> None:
    curve = read_cost(options.cost) if options.cost else None
    run = read_run(options.run or make_run(options.settings))
    table = read_table(run.path / "acceptance.parquet")
    curve = curve or measure_prices(options.settings)
    require_same(run, curve)
    arms = add_speedups(pd.DataFrame([compare(arm, table, curve) for arm in run.arms]))
    print(arms.round(3).to_markdown(index=False))
    records = json.loads(arms.round(4).to_json(orient="records"))
    print(json.dumps({"run_dir": str(run.path), "cost": str(options.cost) if options.cost else None, "arms": records}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
