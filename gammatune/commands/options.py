"""Arguments that several commands take, and what they stand for."""

import argparse
import sys
from pathlib import Path

from gammatune.compose import compose_config
from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.replay.prices import PriceList, from_ratio, read_prices
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.study import PRICES_FILE, TABLE_FILE


def add_settings(parser: argparse.ArgumentParser, example: str = "model_pair=vicuna-68m-7b tasks=qa") -> None:
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=f"for example {example}")


def add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="an acceptance table, or the folder that holds one")


def add_prices(parser: argparse.ArgumentParser) -> None:
    prices = parser.add_mutually_exclusive_group()
    beside = f"default: {PRICES_FILE} beside the table"
    prices.add_argument("--prices", type=Path, metavar="FILE", help=f"measured by the command prices ({beside})")
    prices.add_argument("--cost-ratio", type=float, metavar="C", help="T_target / T_draft, the same for every block length")


def find_table(path: Path) -> Path:
    return path / TABLE_FILE if path.is_dir() else path


def find_prices(options: argparse.Namespace, table: Path) -> PriceList:
    """Raises UserError where no price is known."""
    if options.cost_ratio is not None:
        return from_ratio(options.cost_ratio)
    beside = table.with_name(PRICES_FILE)
    if options.prices is None and not beside.exists():
        raise UserError("No prices: give --prices FILE (made by `gammatune prices`) or --cost-ratio C (T_target / T_draft).")
    file = options.prices or beside
    curve = read_prices(file)
    if strange := curve.find_implausible():
        print(f"Remark: in {file} {strange}, so no draft can pay: measure the prices on a quiet machine.", file=sys.stderr)
    return curve


def choose_policies(settings: list[str], table: AcceptanceTable) -> dict[str, Policy]:
    """What the settings name; without a policy=, everything that the table can replay. Raises UserError."""
    named = any(word.startswith("policy=") for word in settings)
    able = [name for name, option in POLICIES.items() if table.watched or not option.rule.watches_draft]
    return compose_config(settings if named else [f"policy=[{','.join(able)}]", *settings]).policy
