"""`gammatune COMMAND`: record and price a pair, replay policies, make tables and figures from stored files."""

import argparse
import sys

from gammatune.commands import bounds, export_answers, headline, import_answers, prices, record, report, run, show, sweep
from gammatune.errors import exit_code_of

COMMANDS = (record, prices, headline, sweep, bounds, import_answers, export_answers, report, show)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 with one sentence on stderr where the user can fix something."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["run"]:
        return run.main(words[1:])  # Hydra reads these words, options such as --multirun too
    options = read_arguments(words)
    try:
        return options.command(options)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, folder_choice="--out FOLDER")


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """argparse alone refuses key=value words that come after an option; here they may come anywhere."""
    parser = argparse.ArgumentParser(prog="gammatune", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="the main job: decode questions with a pair, all policies beside each other")
    for module in COMMANDS:
        module.add_command(commands)
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "settings") or any(word.startswith("-") for word in rest):
        parser.parse_args(arguments)
    else:
        options.settings = [*options.settings, *rest]
    return options
