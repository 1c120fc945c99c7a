"""Arguments that several commands take, and what they stand for."""

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gammatune.compose import compose_config
from gammatune.config import RunConfig
from gammatune.errors import UserError, clip
from gammatune.policies import Policy
from gammatune.replay.prices import PriceList, from_ratio, read_prices
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.headline import find_replayable
from gammatune.studies.study import PRICES_FILE, TABLE_FILE

#: the settings that each command reads; a word that sets another one would change nothing, and is refused
READS = {
    "run": ("model_pair", "tasks", "policy", "drafter", "decode", "runtime", "experiment", "starts", "repetitions", "seed")
    + ("results", "plan", "acceptance", "prices", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper"),
    "record": ("model_pair", "tasks", "drafter", "decode", "runtime"),
    "prices": ("model_pair", "tasks", "drafter", "decode", "runtime", "seed"),
    "headline": ("policy",),
    "sweep": ("policy",),
    "bounds": ("policy",),
    "drafters": ("policy",),
    "train-draft": ("model_pair", "runtime.device", "runtime.dtype", "runtime.threads", "seed"),
    "advise": ("model_pair", "tasks", "policy", "drafter", "decode", "runtime", "seed"),
}


class Parser(argparse.ArgumentParser):
    """Whose errors are one sentence. Raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{clip(' '.join(message.split()), 300).rstrip('.')}; see {self.prog} --help.")


def whole(low: int, high: int) -> Callable[[str], int]:
    """An option's type: a whole number within bounds."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = None
        if found is None or not low <= found <= high:
            raise argparse.ArgumentTypeError(f"{clip(text)} is no whole number from {low:,} to {high:,}")
        return found

    return number


def ratio(text: str) -> float:
    """An option's type: a cost ratio."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{clip(text)} is no number above 0")
    return found


def add_settings(parser: argparse.ArgumentParser, example: str = "model_pair=vicuna-68m-7b tasks=qa") -> None:
    parser.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE", help=f"for example {example}")


def refuse_unread(command: str, words: list[str]) -> None:
    """Raises UserError for a word that sets what the command does not read. A misspelt key is left to the config."""
    for word in words:
        key = key_of(word)
        known = {part for reads in READS.values() for part in reads} | {"hydra"}
        read = any(f"{key}.".startswith(f"{part}.") for part in READS[command])
        if not read and re.split("[./]", key)[0] in known:
            raise UserError(
                f"The command {command} does not read {clip(key)}; the settings that it takes: {', '.join(READS[command])}."
            )


def policy_words(words: list[str]) -> list[str]:
    """Those of key=value words that choose or set policies."""
    return [word for word in words if key_of(word).split(".")[0] == "policy"]


def key_of(word: str) -> str:
    return re.split("[=@]", word.lstrip("+~"), maxsplit=1)[0]


def add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="an acceptance table, or the folder that holds one")


def add_prices(parser: argparse.ArgumentParser, beside: str = f"default: {PRICES_FILE} beside the table") -> None:
    prices = parser.add_mutually_exclusive_group()
    prices.add_argument("--prices", type=Path, metavar="FILE", help=f"measured by the command prices ({beside})")
    prices.add_argument("--cost-ratio", type=ratio, metavar="C", help="T_target / T_draft, the same for every block length")


def find_table(path: Path) -> Path:
    try:
        return path / TABLE_FILE if path.is_dir() else path
    except OSError:  # a name that is too long: reading it says so
        return path


def find_prices(options: argparse.Namespace, table: Path) -> PriceList:
    """Those that the options give, or those beside the table. Raises UserError where no price is known."""
    if given := given_prices(options):
        return given
    beside = table.with_name(PRICES_FILE)
    if not beside.exists():
        raise UserError("No prices: give --prices FILE (made by `gammatune prices`) or --cost-ratio C (T_target / T_draft).")
    return read_told(beside)


def given_prices(options: argparse.Namespace) -> PriceList | None:
    """Raises UserError for a file that holds none."""
    if options.cost_ratio is not None:
        return from_ratio(options.cost_ratio)
    return read_told(options.prices) if options.prices else None


def read_told(file: Path) -> PriceList:
    """A price file, with a remark where no draft could pay. Raises UserError."""
    curve = read_prices(file)
    if strange := curve.find_implausible():
        print(f"Remark: in {file} {strange}, so no draft can pay: measure the prices on a quiet machine.", file=sys.stderr)
    return curve


def prepare_csv(path: Path) -> None:
    """Before the replay, not after it. Raises UserError where the file cannot be written."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): name another file with --csv.") from error


def compose_work(settings: list[str]) -> RunConfig:
    """For a command that reads no policy: run's own may watch signals that a drafter does not have. Raises UserError."""
    return compose_config(["policy=ar", *settings])


def choose_policies(settings: list[str], table: AcceptanceTable) -> dict[str, Policy]:
    """What the settings name; without a policy=, everything that the table can replay. Raises UserError."""
    if any(word.startswith("policy=") for word in settings):
        return compose_config(settings).policy
    return compose_config([f"policy=[{','.join(find_replayable(table))}]", *settings]).policy
