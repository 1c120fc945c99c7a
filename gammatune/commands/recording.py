"""Verbs that load a pair: they take the same key=value settings as run.py."""

import argparse
import sys
from pathlib import Path

from gammatune.compose import compose_config


def add_verbs(verbs) -> None:
    record = verbs.add_parser("record", help="record the acceptance table of a pair on a task set, for exact replay")
    add_settings(record)
    record.add_argument(
        "--gamma-max", type=int, default=24, help="steps recorded behind each wrong draft token (default: 24)"
    )
    record.add_argument(
        "--known", type=Path, help="answers that are already known, as JSON lines such as a run's turns.jsonl"
    )
    record.add_argument("--out", type=Path, default=Path("results/acceptance"), help="folder of all tables")
    record.set_defaults(verb=record_table)


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for example model_pair=vicuna-68m-7b tasks=qa")


def record_table(options: argparse.Namespace) -> int:
    config = compose_config(options.settings)
    # Heavy imports only once the config is known to be good
    from gammatune.drafters.known import read_known
    from gammatune.studies.record import Recorder

    known = read_known(options.known) if options.known else None
    recorder = Recorder(config, options.out, options.gamma_max, known)
    path = recorder.run()
    print(recorder.describe_times(), file=sys.stderr)
    print(path)
    return 0
