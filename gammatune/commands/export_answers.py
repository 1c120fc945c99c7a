"""The command `export`: a stored run as answer files for Spec-Bench's own evaluation scripts."""

import argparse
import hashlib
import json
from datetime import datetime
from itertools import groupby
from pathlib import Path

from gammatune.errors import UserError, printable
from gammatune.files import write_text
from gammatune.records import TurnLog
from gammatune.report.show import piece
from gammatune.runs.store import StoredArm, StoredRun, read_run


def add_command(commands) -> None:
    parser = commands.add_parser("export", help="write a run as answer files for Spec-Bench's own evaluation scripts")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--arm", metavar="LABEL", help="for example gammatune-3 (default: every finished arm)")
    parser.add_argument("--out", type=Path, help="folder (default: RUN_DIR/answers)")
    parser.set_defaults(command=write_answer_files)


def write_answer_files(options: argparse.Namespace) -> int:
    """One file per arm; with several repetitions one folder per repetition, as Spec-Bench keeps its three runs."""
    run = read_run(options.run)
    if run.facts.get("random_weights"):
        raise UserError(f"{run.name} has random weights, so its speeds mean nothing: export a run of a trained pair.")
    arms = [run.arm(options.arm)] if options.arm else run.arms
    written = [path for arm in arms for path in write_arm(run, arm, options.out or run.path / "answers")]
    print(*(printable(str(path)) for path in written), sep="\n")
    if run.left_out and not options.arm:
        print(f"{run.left_out_sentence()}.")
    return 0


def write_arm(run: StoredRun, arm: StoredArm, out: Path) -> list[Path]:
    repetitions, files = sorted({turn.repetition for turn in arm.turns}), []
    for number, repetition in enumerate(repetitions, start=1):
        folder = out / f"run_{number}" if len(repetitions) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{arm.label}.jsonl")
        lines = [json.dumps(answer) + "\n" for answer in list_answers(run, arm, repetition)]
        write_text(files[-1], "".join(lines))
    return files


def list_answers(run: StoredRun, arm: StoredArm, repetition: int) -> list[dict]:
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
