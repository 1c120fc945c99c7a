"""Reading Spec-Bench's answer files.

Format (hemingkx/Spec-Bench, evaluation/eval.py): one JSON object per question, whose choices[0] has one item per turn in
`turns` (text), `decoding_steps` (rounds), `new_tokens` and `wall_time` (s), and in `accept_lengths` the emitted tokens of
every round, all turns behind one another. gammatune.commands.answers writes the same format.
"""

import hashlib
import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from gammatune.config import MT_BENCH_CATEGORIES, TASKS
from gammatune.errors import UserError

FAILED = "ERROR"
SAMPLED = re.compile(r"temp-(?!0*\.?0*$)[\d.]+$")
ONLY_CHAINS = "only logs whose rounds emit exactly the answer can be imported"
FROM_SPECBENCH = "give an answer file that Spec-Bench's evaluation wrote"
LISTS = ("turns", "decoding_steps", "new_tokens", "accept_lengths")
# Ten questions of each mt_bench category, then eighty of each other task
FIRST_IDS = [*range(81, 161, 10), *range(161, 561, 80)]
LAST_ID = 560


@dataclass
class LoggedTurn:
    """One turn of an answer file. turn: from 0. lengths: emitted tokens per round; their sum is the answer's length."""

    question_id: int
    category: str
    turn: int
    lengths: list[int]

    def __str__(self) -> str:
        return f"turn {self.turn + 1} of question {self.question_id}"


@dataclass
class AnswerFile:
    """What import needs of an answer file. failed: turns whose text says that generation broke off, left out of `turns`."""

    path: Path
    sha256: str
    model_id: str
    turns: list[LoggedTurn]
    failed: list[str]


def read_answers(path: Path) -> AnswerFile:
    """Raises UserError, naming the line, for a file that is missing, empty or no answer file of drafted answers."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The answer file {path} cannot be read ({error.strerror}): check the path.") from error
    records = [read_record(line, f"Line {n} of {path}") for n, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not records:
        raise UserError(f"The answer file {path} is empty: {FROM_SPECBENCH}.")
    ids = [record["question_id"] for record in records]
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise UserError(f"{path} answers question {twice} twice: keep one of the two lines.")
    answers = AnswerFile(path, hashlib.sha256(content).hexdigest(), str(records[0].get("model_id", "")), [], [])
    if SAMPLED.search(answers.model_id):
        raise UserError(f"{path} holds sampled answers ({answers.model_id}): give the file of a run at temperature 0.")
    for record in records:
        split_turns(record, answers)
    if all(length == 1 for logged in answers.turns for length in logged.lengths):
        raise UserError(f"No round of {path} accepted a draft token: give the file of a run with a draft model.")
    return answers


def read_record(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {FROM_SPECBENCH}.") from error
    if wrong := find_wrong_field(record):
        raise UserError(f"{where} has {wrong}: {FROM_SPECBENCH}.")
    record.setdefault("category", category_of(record["question_id"]))
    if not isinstance(record["category"], str):
        raise UserError(f"{where} has no category, and its question_id is none of Spec-Bench's: write the category into it.")
    return record


def find_wrong_field(record) -> str | None:
    """What keeps a parsed line from being an answer, in words."""
    if not isinstance(record, dict) or type(record.get("question_id")) is not int:
        return "no whole number as its question_id"
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return "no choices"
    lists = {name: choices[0].get(name) for name in LISTS}
    for name, values in lists.items():
        fits = is_text if name == "turns" else is_count
        if not isinstance(values, list) or not values or not all(map(fits, values)):
            return f"no list of {'texts' if fits is is_text else 'positive whole numbers'} as choices[0].{name}"
    if len({len(lists[name]) for name in LISTS[:3]}) > 1:
        return "turns, decoding_steps and new_tokens of different lengths"
    return None


def is_text(value) -> bool:
    return isinstance(value, str)


def is_count(value) -> bool:
    return type(value) is int and value > 0


def category_of(question_id: int) -> str | None:
    """The category that Spec-Bench's question file gives to that id; None for an id that it does not have."""
    if not FIRST_IDS[0] <= question_id <= LAST_ID:
        return None
    return (MT_BENCH_CATEGORIES + TASKS[1:])[bisect_right(FIRST_IDS, question_id) - 1]


def split_turns(record: dict, answers: AnswerFile) -> None:
    """Cut accept_lengths at the turns. Raises UserError where the rounds of a turn do not emit its tokens."""
    texts, steps, tokens, lengths = (record["choices"][0][name] for name in LISTS)
    place = 0
    for turn, (text, rounds, wanted) in enumerate(zip(texts, steps, tokens, strict=True)):
        logged = LoggedTurn(record["question_id"], record["category"], turn, lengths[place : place + rounds])
        place += rounds
        if text == FAILED:
            answers.failed.append(str(logged))
            continue
        if len(logged.lengths) < rounds or sum(logged.lengths) != wanted:
            raise UserError(
                f"{str(logged).capitalize()} in {answers.path} does not add up ({wanted} new tokens, but its {rounds} "
                f"rounds emit {sum(logged.lengths)}): {ONLY_CHAINS}."
            )
        answers.turns.append(logged)
    if place != len(lengths):
        raise UserError(
            f"Question {record['question_id']} in {answers.path} has {len(lengths)} accept_lengths for {place} "
            f"decoding_steps: {ONLY_CHAINS}."
        )
