"""Verbs over acceptance tables: the paper's headline, and sweeps of settings. No model is loaded here."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from gammatune.compose import compose_config, read_words
from gammatune.errors import UserError, as_written
from gammatune.policies import POLICIES, Policy
from gammatune.replay.prices import CostCurve, from_ratio, read_cost
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import UNKNOWN, AcceptanceTable, read_table
from gammatune.report.names import OVERALL, policy_name, task_name
from gammatune.report.tables import interval, number
from gammatune.studies import headline
from gammatune.studies.bounds import bounded_numbers, bounded_speeds, derive_bounds, store_bounds
from gammatune.studies.importers.specbench import estimate_match_rate
from gammatune.studies.sweep import Sweep, parse_grid, sweep_policy


def add_verbs(verbs) -> None:
    head = verbs.add_parser(
        "headline", help="the paper's headline by replay: adaptive policies against fixed gamma, all starts"
    )
    add_table(head)
    head.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="for example policy=[gammatune,svip] policy.svip.threshold=0.4"
    )
    head.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    head.set_defaults(verb=print_headline)
    sweep = verbs.add_parser(
        "sweep", help="try a grid of settings on half of the questions, report the winner on the other half"
    )
    add_table(sweep)
    sweep.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=V1,V2",
        help="for example policy.gammatune.eta=0.1,0.3 policy.gammatune.delta=1,2,4",
    )
    sweep.add_argument("--csv", type=Path, help="write every grid point to this file")
    sweep.set_defaults(verb=print_sweep)
    add_bounds(verbs)


def add_bounds(verbs) -> None:
    bounds = verbs.add_parser(
        "bounds", help="store what an imported log tells at several cost ratios, without the log itself"
    )
    bounds.add_argument("table", type=Path, metavar="TABLE", help="made by import-answers")
    bounds.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for example policy=[gammatune,hf_heuristic]")
    bounds.add_argument(
        "--cost-ratios", type=float, nargs="+", default=[4.0, 8.0, 12.0], metavar="C", help="default: 4 8 12"
    )
    bounds.add_argument("--out", type=Path, required=True, help="folder, for example results/reference/NAME")
    bounds.set_defaults(verb=write_bounds)


def write_bounds(options: argparse.Namespace) -> int:
    table = read_table(find_table(options.table))
    if table.complete:
        raise UserError("Every match of this table is known: use headline, which needs no bounds.")
    rate, policies = estimate_match_rate(table), choose_policies(options.settings, table)
    frames = derive_bounds(table, options.cost_ratios, policies, rate)
    unknown = sum(int((turn.match == UNKNOWN).sum()) for turn in table.turns) / table.tokens
    counts = {"turns": len(table.turns), "tokens": table.tokens, "unknown": unknown, "rate": rate}
    store_bounds(frames, table.facts | counts, options.out)
    print(f"{options.out}: starts.csv, headline.csv, source.json")
    return 0


def add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="an acceptance table, or the folder that holds one")
    prices = parser.add_mutually_exclusive_group()
    prices.add_argument(
        "--cost", type=Path, metavar="FILE", help="prices measured by `cost` (default: cost.json beside the table)"
    )
    prices.add_argument(
        "--cost-ratio", type=float, metavar="C", help="T_target / T_draft, verification at one price whatever its length"
    )


def find_table(path: Path) -> Path:
    return path / "acceptance.parquet" if path.is_dir() else path


def find_curve(options: argparse.Namespace, table: Path) -> CostCurve:
    """Raises UserError where no price is known."""
    if options.cost_ratio is not None:
        return from_ratio(options.cost_ratio)
    beside = table.with_name("cost.json")
    if options.cost is None and not beside.exists():
        raise UserError(
            "No prices: give --cost FILE (made by `python -m gammatune cost`) or --cost-ratio C (T_target / T_draft)."
        )
    return read_cost(options.cost or beside)


def choose_policies(settings: list[str], table: AcceptanceTable) -> dict[str, Policy]:
    """What the settings name; without a policy=, everything that the table can replay. Raises UserError."""
    named = any(word.startswith("policy=") for word in settings)
    able = [name for name, option in POLICIES.items() if table.watched or not option.rule.watches_draft]
    words = settings if named else [f"policy=[{','.join(able)}]", *settings]
    return compose_config(words).policy


def print_headline(options: argparse.Namespace) -> int:
    path = find_table(options.table)
    table = read_table(path)
    curve, policies = find_curve(options, path), choose_policies(options.settings, table)
    if not table.complete:
        speeds = bounded_speeds(table, curve, policies, estimate_match_rate(table))
        return print_bounds(bounded_numbers(speeds), options.json)
    speeds = headline.replay_all(build_bench(table, curve), policies)
    if options.json:
        print(json.dumps({policy: asdict(speeds.numbers(policy)) for policy in speeds.by_policy}))
        return 0
    print(headline_text(speeds))
    return 0


def headline_text(speeds: headline.Speeds) -> str:
    """The headline per task, everything else overall, the claims beside them."""
    frame = headline.headline_frame(speeds)
    frame["cell"] = [
        f"{number(v)} {interval(low, high)}"
        for v, low, high in zip(frame["value"], frame["low"], frame["high"], strict=True)
    ]
    main = frame[frame["metric"] == "over_mean_fixed"]
    by_task = main.pivot(index="policy", columns="task", values="cell")[list(dict.fromkeys(main["task"]))]
    overall = frame[frame["task"] == OVERALL].pivot(index="policy", columns="metric", values="cell")[list(headline.METRICS)]
    order = overall_order(speeds)
    by_task = by_task.loc[order].rename(index=policy_name, columns=task_name)
    overall = overall.loc[order].rename(index=policy_name, columns=lambda name: name.replace("_", " "))
    claims = "; ".join(f"{policy_name(name)} {mean:.2f} ± {spread:.2f}" for name, (mean, spread) in headline.CLAIMS.items())
    tuned = headline.STARTS[speeds.tuned_gamma()]
    best = headline.STARTS[speeds.best_gamma()]
    return "\n".join(
        [
            "Speed over the mean of fixed gammas, same starts (modelled; 95 % paired bootstrap over questions):\n",
            as_text(by_task),
            f"\nThe paper claims: {claims}.\n\nOver all questions:\n",
            as_text(overall),
            f"\nBest fixed gamma in hindsight: {best}; tuned on half of the questions, compared on the other half: {tuned}.",
            f"Starts: {', '.join(map(str, headline.STARTS))}. Spread: (fastest start - slowest) / mean.",
        ]
    )


def overall_order(speeds: headline.Speeds) -> list[str]:
    """Policies, fastest first."""
    return sorted(speeds.by_policy, key=lambda name: -speeds.rows[name].mean())


def as_text(frame: pd.DataFrame) -> str:
    return frame.reset_index().to_markdown(index=False, tablefmt="simple", disable_numparse=True)


def print_bounds(numbers: dict, as_json: bool) -> int:
    if as_json:
        print(json.dumps(numbers))
        return 0
    rows = [
        {"policy": policy_name(policy)}
        | {
            metric.replace("_", " "): " / ".join(number(value[k]) for k in ("lower", "mean", "upper"))
            for metric, value in found.items()
        }
        for policy, found in numbers.items()
    ]
    print("Each cell: every unknown position a mismatch / at the estimated rate / a match.\n")
    print(as_text(pd.DataFrame(rows).set_index("policy")))
    return 0


def prepare_csv(path: Path) -> None:
    """Before the replay, not after it. Raises UserError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): name another file with --csv.") from error


def print_sweep(options: argparse.Namespace) -> int:
    path = find_table(options.table)
    name, points = parse_grid(read_words(options.settings))
    if options.csv:
        prepare_csv(options.csv)
    found = sweep_policy(build_bench(read_table(path), find_curve(options, path)), name, points)
    if options.csv:
        found.settings.to_csv(options.csv, index=False)
    print(sweep_text(name, found))
    return 0


def sweep_text(name: str, found: Sweep) -> str:
    top = found.settings.head(10).to_markdown(index=False, tablefmt="simple", floatfmt=".4g")
    ratios = {
        f"{policy_name(name)} with its defaults": found.over_default,
        f"fixed gamma {found.tuned_gamma}, tuned on the same half": found.over_tuned_fixed,
        "the target alone": found.over_autoregressive,
    }
    winner = " ".join(f"{as_written(f'policy.{name}')}.{field}={value}" for field, value in found.winner.items())
    lines = [f"  over {what}: {number(value)} {interval(low, high)}" for what, (value, low, high) in ratios.items()]
    return "\n".join(
        [
            f"{len(found.settings)} settings, the fastest ten on the tuning half:\n",
            top,
            f"\nWinner: {winner}",
            "On the other half:",
            *lines,
        ]
    )
