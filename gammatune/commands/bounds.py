"""The command `bounds`: what an imported log tells at cost ratios and at its own prices, stored without the log itself."""

import argparse
from pathlib import Path

from gammatune.commands.options import add_settings, add_table, choose_policies, find_table, ratio
from gammatune.errors import UserError
from gammatune.replay.prices import from_ratio, read_prices
from gammatune.replay.table import read_table
from gammatune.studies.bounds import FILES, derive_bounds, store_bounds
from gammatune.studies.study import PRICES_FILE

ASSUMED = (4.0, 8.0, 12.0)


def add_command(commands) -> None:
    parser = commands.add_parser("bounds", help="store what an imported log tells, at its own prices or at assumed ratios")
    add_table(parser)
    add_settings(parser, "policy=[gammatune,hf_heuristic]")
    ratios = f"T_target / T_draft, assumed (default: none with {PRICES_FILE} of the log beside the table, else 4 8 12)"
    parser.add_argument("--cost-ratios", type=ratio, nargs="+", metavar="C", help=ratios)
    parser.add_argument("--out", type=Path, required=True, help="folder, for example results/reference/NAME")
    parser.set_defaults(command=write_bounds)


def write_bounds(options: argparse.Namespace) -> int:
    path = find_table(options.table)
    table = read_table(path)
    if table.complete:
        raise UserError("Every match of this table is known: use headline, which needs no bounds.")
    own = path.with_name(PRICES_FILE)
    assumed = options.cost_ratios or ([] if own.exists() else ASSUMED)
    curves = [from_ratio(ratio) for ratio in assumed]
    if own.exists():
        curves.append(read_prices(own))
    bounds = derive_bounds(table, curves, choose_policies(options.settings, table))
    if own.exists():
        bounds.source["own_prices"] = {"ratio": round(float(curves[-1].ratio()), 2), **curves[-1].facts}
    store_bounds(bounds, options.out)
    print(f"{options.out}: {', '.join(FILES)}")
    return 0
