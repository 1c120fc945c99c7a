"""The command `import`: an engine's own log as an acceptance table."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gammatune.commands.options import whole
from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.replay.prices import prices_to_json
from gammatune.replay.table import AcceptanceTable, write_table
from gammatune.report.notes import list_prices
from gammatune.studies.bounds import count_unknown
from gammatune.studies.importers.log_prices import fit_log_prices
from gammatune.studies.importers.mlx import import_mlx
from gammatune.studies.importers.positions import import_positions
from gammatune.studies.importers.rounds import MAX_NEW_TOKENS, build_schedule
from gammatune.studies.importers.specbench import import_answers, read_answers, read_drafted
from gammatune.studies.importers.vllm import import_vllm
from gammatune.studies.study import PRICES_FILE, TABLE_FILE
from gammatune.traces import UNKNOWN


@dataclass
class Imported:
    """A table, and the price list of its log where the log has times."""

    table: AcceptanceTable
    name: str  # of the folder that it gets, after the file's
    prices: dict | None = None  # as JSON


@dataclass(frozen=True)
class Format:
    """A kind of log."""

    read: Callable[[argparse.Namespace], Imported]
    takes: frozenset[str]  # options beside the files and --source, --out
    several: bool = False  # whether it reads more than one file


def add_command(commands) -> None:
    parser = commands.add_parser("import", help="make an acceptance table of the log that an engine wrote")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON lines; several for --format positions")
    formats = "specbench: answers of its own evaluation (default); vllm: responses with per-step metrics; mlx-lm: "
    formats += "from_draft of each token; positions: accepted tokens from each position"
    parser.add_argument("--format", choices=FORMATS, default="specbench", help=formats)
    schedule = "specbench: policy that set the draft lengths of that run, such as fixed (default: hf_heuristic)"
    parser.add_argument("--schedule", help=schedule)
    gamma = "gamma that it started from (default: the policy's own, 5 for hf_heuristic); mlx-lm: its num_draft_tokens"
    parser.add_argument("--gamma", type=whole(0, 1000), help=gamma)
    budget = f"specbench: token budget of a turn (default: {MAX_NEW_TOKENS})"
    parser.add_argument("--max-new-tokens", type=whole(1, 1_000_000), help=budget)
    second = "specbench: a log of the same pair and questions whose blocks a confidence rule ended"
    parser.add_argument("--second", type=Path, metavar="FILE", help=second)
    parser.add_argument("--second-most", type=whole(1, 1000), help="its longest block in tokens (default: 20)")
    plain = f"specbench: a log of the target alone; {PRICES_FILE} of the logs' wall times is written beside the table"
    parser.add_argument("--plain", type=Path, metavar="FILE", help=plain)
    for name in ("second", "plain"):
        parser.add_argument(f"--{name}-source", metavar="TEXT", help=f"where the log of --{name} comes from")
    parser.add_argument("--drafter", help="positions: the drafter whose acc_len to take, such as acc_eagle")
    parser.add_argument("--source", help="where the log comes from, named under its tables (default: the file's name)")
    parser.add_argument("--out", type=Path, help=f"default: results/acceptance/FILE-KIND/{TABLE_FILE}")
    parser.set_defaults(command=import_log)


def import_log(options: argparse.Namespace) -> int:
    chosen = FORMATS[options.format]
    refuse_unused(options, chosen)
    if options.out and options.out.suffix != ".parquet":
        raise UserError(f"--out {options.out} must name a file that ends with .parquet.")
    found = chosen.read(options)
    out = options.out or Path("results/acceptance") / f"{options.files[0].stem}-{found.name}" / TABLE_FILE
    found.table.facts["source"] = options.source or found.table.facts["source"]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(found.table, out)
    print(describe_import(found.table))
    print(out)
    if found.prices:
        write_json(out.with_name(PRICES_FILE), found.prices)
        print(f"{describe_prices(found.prices)}\n{out.with_name(PRICES_FILE)}")
    return 0


def refuse_unused(options: argparse.Namespace, chosen: Format) -> None:
    """Raises UserError for an option or a file that the format does not read."""
    for name in OPTIONS - chosen.takes:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not read with --format {options.format}: leave it out.")
    if len(options.files) > 1 and not chosen.several:
        raise UserError(f"--format {options.format} reads one file, not {len(options.files)}: import them one by one.")


def read_specbench(options: argparse.Namespace) -> Imported:
    schedule = build_schedule(
        options.schedule or "hf_heuristic",
        options.gamma,
        MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens,
    )
    if options.second_most is not None and options.second is None:
        raise UserError("--second-most is the longest block of the log that --second names: name one, or leave it out.")
    for name in ("second", "plain"):
        if getattr(options, f"{name}_source") is not None and getattr(options, name) is None:
            raise UserError(f"--{name}-source is where the log of --{name} comes from: name one, or leave it out.")
    log = read_drafted(options.files[0], schedule, options.source)
    second = read_answers(options.second, options.second_source) if options.second else None
    table = import_answers(log, second, options.second_most or 20)
    if options.plain is None:
        return Imported(table, str(schedule))
    plain = read_answers(options.plain, options.plain_source)
    source = {**log.file.facts, "plain": plain.facts}
    return Imported(table, str(schedule), prices_to_json(fit_log_prices(log.file.turns, log.drafts, plain.turns, source)))


FORMATS = {
    "specbench": Format(
        read_specbench,
        frozenset(
            {"schedule", "gamma", "max_new_tokens", "second", "second_most", "second_source", "plain", "plain_source"}
        ),
    ),
    "vllm": Format(lambda options: Imported(import_vllm(options.files[0]), "vllm"), frozenset()),
    "mlx-lm": Format(lambda options: Imported(import_mlx(options.files[0], options.gamma), "mlx-lm"), frozenset({"gamma"})),
    "positions": Format(
        lambda options: Imported(import_positions(options.files, options.drafter), "positions"),
        frozenset({"drafter"}),
        several=True,
    ),
}
OPTIONS = frozenset({"drafter"}).union(*(each.takes for each in FORMATS.values()))


def describe_import(table: AcceptanceTable) -> str:
    """What was read, how much of it is known, and what the file did not contain."""
    facts = table.facts
    if dropped := facts.get("dropped"):
        counts = ", ".join(f"{count} of {name}" for name, count in dropped.items())
        return f"{len(table.turns)} answers, {table.tokens:,} tokens; left out, since list and answer differ: {counts}."
    lines = [
        f"{len(table.turns)} turns, {table.tokens:,} tokens in {facts['rounds']:,} rounds, none of which contradicts "
        f"{facts['schedule']}."
    ]
    if second := facts.get("second"):
        lines.append(
            f"{second['source']} stands beside it for {second['shared']:,} tokens ({second['same_turns']} turns with equal "
            f"text): {second['learned']:,} unknown matches became known, {second['contradictions']} positions contradict."
        )
    lines.append(
        f"{count_unknown(table):.1%} of the matches are unknown; estimated match rate there: "
        f"{facts['estimated match rate']:.3f}."
    )
    if not any(turn.prompt_tokens for turn in table.turns):
        lines.append("Prompt lengths are not in the file and count as 0.")
    if not any((turn.match[:-1] == UNKNOWN).any() for turn in table.turns):
        lines.append("No round was fully accepted, so nothing in the log confirms the planned lengths: check --gamma.")
    if facts.get("failed"):
        lines.append(f"Left out, since generation failed there: {', '.join(facts['failed'])}.")
    return "\n".join(lines)


def describe_prices(prices: dict) -> str:
    explained = prices["explained"]["drafted"]
    return f"Prices of the log's own wall times{list_prices(prices)}; R2 {explained:.3f}."
