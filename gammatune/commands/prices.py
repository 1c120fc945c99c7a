"""The command `prices`: what drafting and verifying cost on this machine."""

import argparse
import sys
from pathlib import Path

from gammatune.commands.options import add_settings, compose_work, whole
from gammatune.errors import UserError
from gammatune.process import loading


def add_command(commands) -> None:
    parser = commands.add_parser("prices", help="measure T_draft, T_target(k) and the rest of a round, for pricing replays")
    add_settings(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: results/prices/PAIR-HASH.json")
    parser.add_argument("--contexts", default="128,512,1024", help="prompt lengths in tokens (default: 128,512,1024)")
    parser.add_argument("--gamma-max", type=whole(1, 120), default=24, help="longest block (default: 24)")
    parser.add_argument(
        "--repeats", type=whole(1, 1000), default=5, help="passes over all block lengths and contexts (default: 5)"
    )
    parser.add_argument("--keep-implausible", action="store_true", help="write prices by which no draft could ever pay")
    parser.set_defaults(command=measure_prices)


def read_lengths(text: str) -> tuple[int, ...]:
    """128,512 as numbers. Raises UserError."""
    try:
        return tuple(int(length) for length in text.split(","))
    except ValueError as error:
        raise UserError(f"--contexts {text} cannot be read: write lengths in tokens such as 128,512,1024.") from error


def measure_prices(options: argparse.Namespace) -> int:
    config = compose_work(options.settings)
    # Heavy imports only once the config is known to be good
    with loading():
        from gammatune.runs.measure_prices import (
            Plan,
            PriceRun,
            prepare_place,
            refuse_implausible,
            show_prices,
            write_prices,
        )
        from gammatune.runs.session import open_session

    plan = Plan(read_lengths(options.contexts), options.gamma_max, options.repeats)
    run = PriceRun(open_session(config, endless=True), plan)
    path = options.out or run.default_path(Path("results/prices"))
    prepare_place(path)
    curve = run.run()
    warning = run.load.warning("prices")
    if warning:
        print(warning, file=sys.stderr)
    if not options.keep_implausible:
        refuse_implausible(curve, run.load.median)
    write_prices(curve, path)
    print(show_prices(curve))
    print(path)
    return 0
