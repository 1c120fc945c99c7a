"""The command `bounds`: what an imported log tells at several cost ratios, stored without the log itself."""

import argparse
from pathlib import Path

from gammatune.commands.options import add_settings, add_table, choose_policies, find_table, ratio
from gammatune.errors import UserError
from gammatune.replay.table import read_table
from gammatune.studies.bounds import FILES, derive_bounds, store_bounds


def add_command(commands) -> None:
    parser = commands.add_parser("bounds", help="store what an imported log tells at several cost ratios, without the log")
    add_table(parser)
    add_settings(parser, "policy=[gammatune,hf_heuristic]")
    parser.add_argument(
        "--cost-ratios", type=ratio, nargs="+", default=[4.0, 8.0, 12.0], metavar="C", help="default: 4 8 12"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, for example results/reference/NAME")
    parser.set_defaults(command=write_bounds)


def write_bounds(options: argparse.Namespace) -> int:
    table = read_table(find_table(options.table))
    if table.complete:
        raise UserError("Every match of this table is known: use headline, which needs no bounds.")
    store_bounds(derive_bounds(table, options.cost_ratios, choose_policies(options.settings, table)), options.out)
    print(f"{options.out}: {', '.join(FILES)}")
    return 0
