"""The command `record`: the acceptance table of a pair on a task set."""

import argparse
import sys
from pathlib import Path

from gammatune.commands.options import add_settings, compose_work, whole
from gammatune.errors import stopping_quietly
from gammatune.process import loading


def add_command(commands) -> None:
    parser = commands.add_parser("record", help="record the acceptance table of a pair on a task set, for exact replay")
    add_settings(parser)
    parser.add_argument(
        "--gamma-max", type=whole(1, 120), default=24, help="draft steps recorded after each wrong draft token (default: 24)"
    )
    parser.add_argument(
        "--known", type=Path, help="answers that are already known, as JSON lines such as a run's turns.jsonl"
    )
    parser.add_argument(
        "--extend",
        type=Path,
        metavar="TABLE",
        help="take over the questions of an earlier table of the same pair, question file and settings, or of a recording "
        "that was stopped: a table, or the folder of either",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="TABLE",
        help="the target's answers, from a table of the same target and settings with another drafter: no forward of the "
        "target is needed for them",
    )
    parser.add_argument("--out", type=Path, default=Path("results/acceptance"), help="folder of all tables")
    parser.set_defaults(command=record_table)


def record_table(options: argparse.Namespace) -> int:
    config = compose_work(options.settings)
    # Heavy imports only once the config is known to be good
    with loading():
        from gammatune.drafters.known import read_known
        from gammatune.runs.earlier import read_earlier
        from gammatune.studies.record import Recorder

    known = read_known(options.known) if options.known else None
    earlier = read_earlier(options.extend) if options.extend else None
    answers = read_earlier(options.answers, answers_alone=True) if options.answers else None
    recorder = Recorder(config, options.out, options.gamma_max, known, earlier, answers)
    with stopping_quietly():
        path = recorder.run()
    print(recorder.describe_times(), file=sys.stderr)
    print(path)
    return 0
