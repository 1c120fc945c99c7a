"""The questions of a run: Spec-Bench's 480, the small shipped set, or a user's own file in the same format.

Format (hemingkx/Spec-Bench, data/spec_bench/question.jsonl): one JSON object per line with question_id, category and
turns; other fields, such as reference, are kept out of the run.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gammatune.config import CATEGORIES, TasksConfig, task_of
from gammatune.errors import UserError
from gammatune.tasks.question_file import SPECBENCH_URL, find_question_file, sha256
from gammatune.tasks.selection import select_questions


@dataclass(frozen=True)
class Question:
    """One conversation: the user's turns, in order."""

    question_id: int
    category: str
    task: str
    turns: list[str]


@dataclass(frozen=True)
class QuestionSet:
    """The chosen questions in file order, and the sha256 of the whole file they come from."""

    questions: list[Question]
    checksum: str


def load_questions(config: TasksConfig, url: str = SPECBENCH_URL) -> QuestionSet:
    """Find, check and read the question file, then take the part that the config asks for.

    `url` is where a missing Spec-Bench file is downloaded from. Raises UserError for a file that is missing, not the
    pinned one, or malformed (with the line), and for an include that matches no question.
    """
    path, content = find_question_file(config, url)
    check_lines(content, path)
    questions = [Question(r["question_id"], r["category"], task_of(r["category"]), r["turns"]) for r in read_records(path)]
    return QuestionSet(select_questions(questions, config), sha256(content))


def read_records(path: Path):
    """The file as a data set held in memory; nothing stays on disk."""
    # Imported here because it takes a second, and a typo in a config should be refused at once.
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=scratch, keep_in_memory=True)


def check_lines(content: bytes, path: Path) -> None:
    """Raises UserError, naming the line, for anything that is not a question or repeats an earlier question_id."""
    if not content.strip():
        raise UserError(
            f"The question file {path} is empty: write one JSON object with question_id, category and turns per line."
        )
    first_line = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"Line {number} of {path}"
        question_id = check_record(parse_line(line, where), where)
        if question_id in first_line:
            raise UserError(
                f"{where} repeats the question_id {question_id} of line {first_line[question_id]}: give each "
                "question its own."
            )
        first_line[question_id] = number


def parse_line(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line.decode())
    except ValueError as error:
        raise UserError(f"{where} is not a JSON object ({error}): mend or remove the line.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object but a {type(record).__name__}: mend or remove the line.")
    if missing := {"question_id", "category", "turns"} - set(record):
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}: every question needs question_id, category and turns.")
    return record


def check_record(record: dict, where: str) -> int:
    question_id, category, turns = record["question_id"], record["category"], record["turns"]
    if type(question_id) is not int:
        raise UserError(f"{where} has the question_id {question_id!r}: make it a whole number.")
    if category not in CATEGORIES:
        raise UserError(f"{where} has the unknown category {category!r}: choose one of {', '.join(CATEGORIES)}.")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise UserError(
            f"{where} has turns that are not a list of one or more strings: write them like "
            '["first prompt", "second prompt"].'
        )
    for number, turn in enumerate(turns, start=1):
        if not turn.strip():
            raise UserError(f"{where} has an empty turn {number}: give it text or remove it.")
    return question_id
