"""The command `import`: an answer file of Spec-Bench's own harness as an acceptance table."""

import argparse
from pathlib import Path

from gammatune.commands.options import whole
from gammatune.errors import UserError
from gammatune.replay.table import AcceptanceTable, write_table
from gammatune.studies.bounds import count_unknown
from gammatune.studies.importers.specbench import MAX_NEW_TOKENS, build_schedule, import_answers
from gammatune.studies.study import TABLE_FILE
from gammatune.traces import UNKNOWN


def add_command(commands) -> None:
    parser = commands.add_parser("import", help="make an acceptance table of an answer file that Spec-Bench wrote")
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON lines with accept_lengths")
    schedule = "policy that set the draft lengths of that run, such as fixed (default: hf_heuristic)"
    parser.add_argument("--schedule", default="hf_heuristic", help=schedule)
    gamma = "gamma that it started from (default: the policy's own, 5 for hf_heuristic)"
    parser.add_argument("--gamma", type=whole(0, 1000), help=gamma)
    budget = f"token budget of a turn (default: {MAX_NEW_TOKENS})"
    parser.add_argument("--max-new-tokens", type=whole(1, 1_000_000), default=MAX_NEW_TOKENS, help=budget)
    parser.add_argument("--source", help="where the log comes from, named under its tables (default: the file's name)")
    parser.add_argument("--out", type=Path, help=f"default: results/acceptance/FILE-SCHEDULE/{TABLE_FILE}")
    parser.set_defaults(command=read_answer_file)


def read_answer_file(options: argparse.Namespace) -> int:
    schedule = build_schedule(options.schedule, options.gamma, options.max_new_tokens)
    out = options.out or Path("results/acceptance") / f"{options.file.stem}-{schedule}" / TABLE_FILE
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} must name a file that ends with .parquet.")
    table = import_answers(options.file, schedule)
    table.facts["source"] = options.source or table.facts["source"]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, out)
    print(describe_import(table))
    print(out)
    return 0


def describe_import(table: AcceptanceTable) -> str:
    """What was read, how much of it is known, and what the file did not contain."""
    facts = table.facts
    lines = [
        f"{len(table.turns)} turns, {table.tokens:,} tokens in {facts['rounds']:,} rounds, none of which contradicts "
        f"{facts['schedule']}.",
        f"{count_unknown(table):.1%} of the matches are unknown; estimated match rate there: "
        f"{facts['estimated match rate']:.3f}. Prompt lengths are not in the file and count as 0.",
    ]
    if not any((turn.match[:-1] == UNKNOWN).any() for turn in table.turns):
        lines.append("No round was fully accepted, so nothing in the log confirms the planned lengths: check --gamma.")
    if facts["failed"]:
        lines.append(f"Left out, since generation failed there: {', '.join(facts['failed'])}.")
    return "\n".join(lines)
