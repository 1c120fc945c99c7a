"""The command `sweep`: a grid of settings, chosen on one half of the questions and reported on the other."""

import argparse
from pathlib import Path

from gammatune.commands.options import add_prices, add_settings, add_table, find_prices, find_table, prepare_csv
from gammatune.compose import read_words
from gammatune.errors import as_written
from gammatune.files import write_text
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import read_table
from gammatune.report.names import policy_name
from gammatune.report.numbers import interval, number
from gammatune.studies.sweep import Sweep, parse_grid, sweep_policy


def add_command(commands) -> None:
    parser = commands.add_parser("sweep", help="try settings on half of the questions, report the winner on the other half")
    add_table(parser)
    add_prices(parser)
    add_settings(parser, "policy.gammatune.eta=0.1,0.3 policy.gammatune.delta=1,2,4")
    parser.add_argument("--csv", type=Path, help="write every grid point to this file")
    parser.set_defaults(command=print_sweep, folder_choice="--csv FILE")


def print_sweep(options: argparse.Namespace) -> int:
    path = find_table(options.table)
    name, points = parse_grid(read_words(options.settings))
    if options.csv:
        prepare_csv(options.csv)
    found = sweep_policy(build_bench(read_table(path), find_prices(options, path)), name, points)
    if options.csv:
        write_text(options.csv, found.settings.to_csv(index=False))
    print(sweep_text(name, found))
    return 0


def sweep_text(name: str, found: Sweep) -> str:
    ratios = {
        f"{policy_name(name)} with its defaults": found.over_default,
        f"fixed gamma {found.tuned_gamma}, tuned on the same half": found.over_tuned_fixed,
        "the target alone": found.over_autoregressive,
    }
    winner = " ".join(f"{as_written(f'policy.{name}')}.{field}={value}" for field, value in found.winner.items())
    return "\n".join(
        [
            f"{len(found.settings)} settings, the fastest ten on the tuning half:\n",
            found.settings.head(10).to_markdown(index=False, tablefmt="simple", floatfmt=".4g"),
            f"\nWinner: {winner}",
            "On the other half:",
            *(f"  over {what}: {number(value)} {interval(low, high)}" for what, (value, low, high) in ratios.items()),
        ]
    )
