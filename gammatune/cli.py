"""`python -m gammatune COMMAND`: record and price a pair, replay policies, make tables and figures from stored files."""

import argparse

from gammatune.commands import bounds, export_answers, headline, import_answers, prices, record, report, show, sweep
from gammatune.errors import complain

COMMANDS = (record, prices, headline, sweep, bounds, import_answers, export_answers, report, show)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 with one sentence on stderr where the user can fix something."""
    options = read_arguments(arguments)
    try:
        return options.command(options)
    except (Exception, KeyboardInterrupt) as error:
        return complain(error, choice="--out")


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """argparse alone refuses key=value words that come after an option; here they may come anywhere."""
    parser = argparse.ArgumentParser(prog="python -m gammatune", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_command(commands)
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "settings") or any(word.startswith("-") for word in rest):
        parser.parse_args(arguments)
    else:
        options.settings = [*options.settings, *rest]
    return options
