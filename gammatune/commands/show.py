"""The command `show`: one answer of a stored run on the terminal."""

import argparse
import os
import sys
from pathlib import Path

from gammatune.report import show
from gammatune.runs.store import read_run


def add_command(commands) -> None:
    parser = commands.add_parser("show", help="print one answer, coloured by accepted, corrected and bonus tokens")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--question", type=int, metavar="ID", help="question id (default: the first)")
    parser.add_argument("--arm", metavar="LABEL", help="for example gammatune-3 (default: the first GammaTune arm)")
    parser.set_defaults(command=show_answer)


def show_answer(options: argparse.Namespace) -> int:
    run = read_run(options.run)
    arm = show.choose_arm(run, options.arm)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for turn in show.choose_turns(arm, options.question):
        print(f"{show.headline(run, arm, turn)}\n\n{show.answer_text(run, turn, coloured)}\n")
    if coloured:
        print(show.legend_text())
    return 0
