"""`gammatune COMMAND`: run, record and price a pair, replay policies, make tables and figures from stored files."""

import argparse
import sys

from gammatune.commands import (
    advise,
    bounds,
    drafters,
    export_answers,
    headline,
    import_answers,
    prices,
    record,
    report,
    run,
    show,
    sweep,
    train_draft,
)
from gammatune.commands.options import READS, Parser, refuse_unread
from gammatune.errors import UserError, clip, exit_code_of

COMMANDS = (run, record, prices, headline, sweep, drafters, advise, bounds, train_draft)
COMMANDS += (import_answers, export_answers, report, show)


def main(words: list[str]) -> int:
    """Run one command; returns the exit code: 0, or 2 with one sentence on stderr where the user can fix something."""
    options = argparse.Namespace(folder_choice="--out FOLDER", command=None, settings=[])
    try:
        read_arguments(words, options)
        refuse_unread(options.name, options.settings)
        code = options.command(options) if options.command else 0
        sys.stdout.flush()  # here, what cannot be written still becomes a sentence
        return code
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, "gammatune: ", options.folder_choice)


def read_arguments(words: list[str], options: argparse.Namespace) -> None:
    """Fill the options. argparse alone refuses key=value words that come after an option; here they may come anywhere.

    Raises UserError. No command is set after --help, which is printed here.
    """
    parser = Parser(prog="gammatune", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="name", metavar="COMMAND")
    for module in COMMANDS:
        module.add_command(commands)
    try:
        _, rest = parser.parse_known_args(words, options)
    except SystemExit:  # of --help
        options.command = None
        return
    if rest and (options.name not in READS or any(word.startswith("-") for word in rest)):
        command = f"{options.name} cannot take {clip(' '.join(rest))}"
        raise UserError(f"The command {command}; see gammatune {options.name} --help.")
    options.settings = [*options.settings, *rest]
