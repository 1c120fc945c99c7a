"""`python -m gammatune VERB`: record and price a pair, replay policies, make tables and figures from stored files."""

import argparse
import os
import sys

from gammatune.commands import answers, pricing, recording, replaying, reporting, run
from gammatune.errors import UserError, explain


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, or 2 with one sentence on stderr where the user can mend something."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["run"]:
        return run.main(words[1:])  # Hydra reads these words, options such as --multirun too
    options = read_arguments(arguments)
    try:
        return options.verb(options)
    except UserError as error:
        return complain(error)
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "gammatune: Interrupted; what was written is kept, and the same command continues from there.", file=sys.stderr
        )
        return 130
    except Exception as error:
        sentence = explain_here(error)
        if sentence is None:
            raise
        return complain(sentence)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """argparse alone refuses key=value words that stand behind an option; here they may stand anywhere."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "settings") or any(word.startswith("-") for word in rest):
        parser.parse_args(arguments)
    else:
        options.settings = [*options.settings, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gammatune", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("run", help="the main job: decode questions with a pair, all policies beside each other")
    for group in (recording, pricing, replaying, answers, reporting):
        group.add_verbs(verbs)
    return parser


def explain_here(error: Exception) -> str | None:
    """As for run.py, but what cannot be written has its own way out: --out."""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "the output"
        return f"Cannot write {place} ({error.strerror}): choose another folder with --out, or free some space."
    return explain(error)


def complain(error) -> int:
    print(error, file=sys.stderr)
    return 2
