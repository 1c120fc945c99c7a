"""The command `headline`: the paper's headline by replay of a table. No model is loaded."""

import argparse
import json

import pandas as pd

from gammatune.commands.options import add_prices, add_settings, add_table, choose_policies, find_prices, find_table
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import read_table
from gammatune.report.names import policy_name
from gammatune.report.numbers import number
from gammatune.report.tables import to_markdown
from gammatune.report.views import by_task_view, headline_view, plain
from gammatune.studies.bounds import ENDS, bounded_numbers, bounded_speeds
from gammatune.studies.headline import STARTS, Speeds, headline_frame, replay_all


def add_command(commands) -> None:
    parser = commands.add_parser("headline", help="adaptive policies against fixed gamma by replay, from all starts")
    add_table(parser)
    add_prices(parser)
    add_settings(parser, "policy=[gammatune,svip] policy.svip.threshold=0.4")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(command=print_headline)


def print_headline(options: argparse.Namespace) -> int:
    path = find_table(options.table)
    table = read_table(path)
    curve, policies = find_prices(options, path), choose_policies(options.settings, table)
    if table.complete:
        speeds = replay_all(build_bench(table, curve), policies)
        numbers, text = {name: speeds.numbers(name) for name in speeds.by_policy}, headline_text
    else:
        speeds, text = bounded_speeds(table, curve, policies), bounds_text
        numbers = bounded_numbers(speeds)
    print(json.dumps(numbers) if options.json else text(speeds))
    return 0


def headline_text(speeds: Speeds) -> str:
    """The headline per task, everything else overall with the paper's claims beside."""
    frame = headline_frame(speeds)
    best, tuned = STARTS[speeds.best_gamma()], STARTS[speeds.tuned_gamma()]
    return "\n".join(
        [
            "Speed over the mean of fixed gammas, same starts (modelled; 95 % paired bootstrap over questions):\n",
            to_markdown(by_task_view(frame), "simple"),
            "\nOver all questions:\n",
            to_markdown(headline_view(frame), "simple"),
            f"\nBest fixed gamma in hindsight: {best}; tuned on half of the questions, compared on the other half: {tuned}.",
            f"Starts: {', '.join(map(str, STARTS))}. Spread: (fastest start - slowest) / mean.",
        ]
    )


def bounds_text(speeds: dict[str, list[Speeds]]) -> str:
    rows = [
        {"policy": policy_name(policy)}
        | {plain(metric): " / ".join(number(ends[end]) for end in ENDS) for metric, ends in found.items()}
        for policy, found in bounded_numbers(speeds).items()
    ]
    explained = "Each cell: every unknown position a mismatch / at the estimated rate / a match.\n"
    return f"{explained}\n{to_markdown(pd.DataFrame(rows), 'simple')}"
