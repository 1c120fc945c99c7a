"""The command `drafters`: several drafters of one target under every policy, by replay of their tables."""

import argparse
from pathlib import Path

from gammatune.commands.options import add_prices, find_prices, find_table, policy_words, prepare_csv
from gammatune.compose import compose_config
from gammatune.files import write_text
from gammatune.replay.table import read_table
from gammatune.report.tables import to_markdown
from gammatune.report.views import drafters_view, pairings_by_task_view, pairings_view
from gammatune.studies.drafters import Comparison, Contender, add_lists, compare_drafters


class SplitWords(argparse.Action):
    """Tables and key=value words in any order: policy=... is a setting, everything else a table."""

    def __call__(self, parser, namespace, words, option_string=None) -> None:
        namespace.settings = policy_words(words)
        namespace.tables = [Path(word) for word in words if word not in namespace.settings]


def add_command(commands) -> None:
    parser = commands.add_parser("drafters", help="compare drafters, each under every policy, by replay of their tables")
    tables = "acceptance tables of one target's answers, one of each drafter, and settings such as policy=[fixed,gammatune]"
    parser.add_argument("tables", nargs="+", action=SplitWords, metavar="TABLE", help=tables)
    add_prices(parser, "default: prices.json beside each table")
    lists = "also put each drafter that takes no forwards before each that takes some, as drafter=[suffix,model] does"
    parser.add_argument("--lists", action="store_true", help=lists)
    parser.add_argument("--csv", type=Path, help="write every drafter and policy to this file")
    parser.set_defaults(command=print_drafters, folder_choice="--csv FILE")


def print_drafters(options: argparse.Namespace) -> int:
    paths = [find_table(path) for path in options.tables]
    policies = compose_config(options.settings).policy if options.settings else None
    if options.csv:
        prepare_csv(options.csv)
    contenders = [read_contender(options, path) for path in paths]
    found = compare_drafters(add_lists(contenders) if options.lists else contenders, policies)
    if options.csv:
        write_text(options.csv, found.pairings.to_csv(index=False))
    print(drafters_text(found))
    return 0


def read_contender(options: argparse.Namespace, path: Path) -> Contender:
    return Contender.of(read_table(path), find_prices(options, path))


def drafters_text(found: Comparison) -> str:
    same = (
        f"{found.differing} answers are not the same in all tables"
        if found.differing
        else "all tables hold the same answers"
    )
    return "\n".join(
        [
            f"{found.questions} questions ({same}); settings are chosen on one half of them, the other half is told.\n",
            to_markdown(drafters_view(found.drafters), "simple"),
            "\nSpeed over the target alone (modelled; 95 % paired bootstrap over questions), fastest first:\n",
            to_markdown(pairings_view(found.pairings), "simple"),
            "\nBy task:\n",
            to_markdown(pairings_by_task_view(found.by_task), "simple"),
        ]
    )
