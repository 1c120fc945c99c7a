"""Verbs for Spec-Bench's own answer files: read one as an acceptance table, write a stored run as such files."""

import argparse
import hashlib
import json
from datetime import datetime
from itertools import groupby
from pathlib import Path

from gammatune.errors import UserError
from gammatune.records import TurnLog
from gammatune.replay.table import UNKNOWN, AcceptanceTable, write_table
from gammatune.report.show import piece
from gammatune.runs.store import Arm, StoredRun, read_run
from gammatune.studies.importers.specbench import MAX_NEW_TOKENS, Schedule, build_schedule, import_answers


def add_verbs(verbs) -> None:
    read = verbs.add_parser("import-answers", help="make an acceptance table of an answer file that Spec-Bench wrote")
    read.add_argument("file", type=Path, metavar="FILE", help="JSON lines with accept_lengths")
    read.add_argument(
        "--schedule",
        default="hf_heuristic",
        help="policy that set the draft lengths of that run, such as fixed (default: hf_heuristic)",
    )
    read.add_argument("--gamma", type=int, help="gamma that it started from (default: the policy's own, 5 for hf_heuristic)")
    read.add_argument(
        "--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help=f"token budget of a turn (default: {MAX_NEW_TOKENS})"
    )
    read.add_argument("--source", help="where the log comes from, named under its tables (default: the file's name)")
    read.add_argument("--out", type=Path, help="default: results/acceptance/FILE-SCHEDULE/acceptance.parquet")
    read.set_defaults(verb=read_answer_file)
    write = verbs.add_parser("export-answers", help="write a run as answer files for Spec-Bench's own evaluation scripts")
    write.add_argument("run", type=Path, metavar="RUN_DIR")
    write.add_argument("--arm", metavar="LABEL", help="for example gammatune-3 (default: every finished arm)")
    write.add_argument("--out", type=Path, help="folder (default: RUN_DIR/answers)")
    write.set_defaults(verb=write_answer_files)


def read_answer_file(options: argparse.Namespace) -> int:
    schedule = build_schedule(options.schedule, options.gamma, options.max_new_tokens)
    out = options.out or default_table(options.file, schedule)
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} must name a file that ends with .parquet.")
    table = import_answers(options.file, schedule)
    table.facts["source"] = options.source or table.facts["source"]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, out)
    print(describe_import(table))
    print(out)
    return 0


def default_table(file: Path, schedule: Schedule) -> Path:
    return Path("results/acceptance") / f"{file.stem}-{schedule}" / "acceptance.parquet"


def describe_import(table: AcceptanceTable) -> str:
    """What was read, how much of it is known, and what the file did not say."""
    facts, unknown = table.facts, sum(int((turn.match == UNKNOWN).sum()) for turn in table.turns)
    lines = [
        f"{len(table.turns)} turns, {table.tokens:,} tokens in {facts['rounds']:,} rounds, none of which contradicts "
        f"{facts['schedule']}.",
        f"{unknown / table.tokens:.1%} of the matches are unknown; estimated match rate there: "
        f"{facts['estimated match rate']:.3f}. Prompt lengths are not in the file and count as 0.",
    ]
    if not any((turn.match[:-1] == UNKNOWN).any() for turn in table.turns):
        lines.append("No round was fully accepted, so nothing in the log confirms the planned lengths: check --gamma.")
    if facts["failed"]:
        lines.append(f"Left out, since generation failed there: {', '.join(facts['failed'])}.")
    return "\n".join(lines)


def write_answer_files(options: argparse.Namespace) -> int:
    """One file per arm; with several repetitions one folder per repetition, as Spec-Bench keeps its three runs."""
    run = read_run(options.run)
    if run.facts.get("random_weights"):
        raise UserError(f"{run.name} has random weights, so its speeds mean nothing: export a run of a trained pair.")
    arms = [run.arm(options.arm)] if options.arm else run.arms
    out = options.out or run.path / "answers"
    written = [path for arm in arms for path in write_arm(run, arm, out)]
    print(*written, sep="\n")
    if run.left_out and not options.arm:
        print(f"{run.left_out_sentence()}.")
    return 0


def write_arm(run: StoredRun, arm: Arm, out: Path) -> list[Path]:
    repetitions = sorted({turn.repetition for turn in arm.turns})
    folders = [out] if len(repetitions) == 1 else [out / f"run_{number}" for number, _ in enumerate(repetitions, start=1)]
    for repetition, folder in zip(repetitions, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(answer) + "\n" for answer in list_answers(run, arm, repetition)]
        (folder / f"{arm.label}.jsonl").write_text("".join(lines), encoding="utf-8")
    return [folder / f"{arm.label}.jsonl" for folder in folders]


def list_answers(run: StoredRun, arm: Arm, repetition: int) -> list[dict]:
    """One answer per question, sorted by question_id: Spec-Bench's equal.py compares files line by line."""
    turns = sorted((t for t in arm.turns if t.repetition == repetition), key=lambda t: (t.question_id, t.turn))
    questions = [list(group) for _, group in groupby(turns, key=lambda turn: turn.question_id)]
    model, time = f"{run.facts['pair']}-{arm.label}", datetime.fromisoformat(arm.provenance["time"]).timestamp()
    return [make_answer(asked, [plain_text(run, turn) for turn in asked], model, time) for asked in questions]


def plain_text(run: StoredRun, turn: TurnLog) -> str:
    """The answer without its end of sequence and outer white space, as Spec-Bench stores it."""
    ids = turn.output_ids[:-1] if turn.finish == "eos" else turn.output_ids
    return "".join(piece(run, token) for token in ids).strip()


def make_answer(turns: list[TurnLog], texts: list[str], model_id: str, time: float) -> dict:
    """The line of one question, fields named and ordered as Spec-Bench writes them.

    turns: its turns in order, of one repetition; texts: their answers. time: seconds since 1970. Token counts are those of
    the ids, a final end of sequence included. answer_id depends on the content, so writing twice gives the same bytes.
    """
    choice = {
        "index": 0,
        "turns": texts,
        "decoding_steps": [len(turn.rounds) for turn in turns],
        "new_tokens": [len(turn.output_ids) for turn in turns],
        "wall_time": [turn.wall_ms / 1000 for turn in turns],
        "accept_lengths": [r.emitted for turn in turns for r in turn.rounds],
    }
    head = {"question_id": turns[0].question_id, "category": turns[0].category}
    digest = hashlib.sha256(json.dumps([head, model_id, choice]).encode()).hexdigest()
    return {**head, "answer_id": digest[:22], "model_id": model_id, "choices": [choice], "tstamp": time}
