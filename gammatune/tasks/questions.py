"""The questions of a run: Spec-Bench's 480, the small shipped set, or a user's own file in the same format.

Format (hemingkx/Spec-Bench, data/spec_bench/question.jsonl): one JSON object per line with question_id, category and
turns; other fields, such as reference, are ignored.
"""

import hashlib
import http.client
import json
import os
import urllib.request
from codecs import BOM_UTF8
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from operator import attrgetter
from pathlib import Path
from random import Random
from reprlib import repr as shorten

from gammatune.config import CATEGORIES, PINNED, TasksConfig, task_of
from gammatune.errors import UserError
from gammatune.machine import cache_dir

SPECBENCH_URL = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
SPECBENCH_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
SPECBENCH_ENV = "SPECBENCH_PATH"
DEMO_PATH = Path(__file__).with_name("demo.jsonl")
TIMEOUT_S = 30
LARGEST_FILE = 256 * 2**20  # bytes; Spec-Bench has 1.5 million
INT64 = range(-(2**63), 2**63)  # what tables and logs hold
HOW_TO_GET = f"get {SPECBENCH_URL} on a machine that can reach it and set tasks.path or {SPECBENCH_ENV} to the file"


@dataclass(frozen=True)
class Question:
    """One conversation."""

    question_id: int
    category: str  # one of config.CATEGORIES
    task: str  # the category's task, one of config.TASKS
    turns: list[str]  # the user's turns, in order


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a run."""

    questions: list[Question]  # the chosen ones, in file order
    checksum: str  # sha256 of the whole file
    queue: list[int]  # their ids in an order of which any beginning has an equal share of each task


def load_questions(config: TasksConfig, url: str = SPECBENCH_URL) -> QuestionSet:
    """Find, check and read the question file, then take the part that the config asks for.

    `url` is where a missing Spec-Bench file is downloaded from. Raises UserError for a file that is missing, not the
    pinned one, or malformed (with the line), and for an include that matches no question.
    """
    path, content = find_question_file(config, url)
    queue = queue_questions(questions := read_questions(content, path), config)
    return QuestionSet(in_file_order(questions, queue), sha256(content), [q.question_id for q in queue])


def find_question_file(config: TasksConfig, url: str = SPECBENCH_URL) -> tuple[Path, bytes]:
    """The question file and its bytes, checked against the checksum that the config asks for.

    Spec-Bench's file is taken from config.path, else $SPECBENCH_PATH, else the cache, else downloaded from `url`.
    Raises UserError when it is missing, cannot be read or is not the file that was asked for.
    """
    if config.source == "demo":
        path, pinned, remedy = DEMO_PATH, None, "set tasks.checksum=pinned to accept the set as shipped"
    elif local := config.path or os.environ.get(SPECBENCH_ENV):
        path, pinned = Path(local).expanduser(), SPECBENCH_SHA256
        remedy = f"replace it by {SPECBENCH_URL}, or set tasks.checksum=null to run your own questions"
    else:
        path, pinned = fetch_specbench(url), SPECBENCH_SHA256
        remedy = "set tasks.checksum=pinned to run Spec-Bench, or set tasks.path to the file that you mean"
    content = read_bytes(path, "tasks.path" if config.path else SPECBENCH_ENV)
    check_sha256(content, pinned if config.checksum == PINNED else config.checksum, f"The question file {path}", remedy)
    return path, content


def cached_specbench() -> Path:
    """Where a fetched copy lies, or would."""
    return cache_dir() / "specbench" / "question.jsonl"


def has_specbench() -> bool:
    """Whether Spec-Bench's questions are on this disk."""
    return bool(os.environ.get(SPECBENCH_ENV)) or cached_specbench().exists()


def fetch_specbench(url: str) -> Path:
    """The cached copy of Spec-Bench's questions, downloaded and checked on first use."""
    path = cached_specbench()
    if not path.exists():
        content = download(url)
        check_sha256(content, SPECBENCH_SHA256, f"What {url} served", HOW_TO_GET)
        store(path, content)
    remedy = "delete it so that it is fetched again"
    check_sha256(read_bytes(path, SPECBENCH_ENV), SPECBENCH_SHA256, f"The cached file {path}", remedy)
    return path


def download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"Spec-Bench's questions are not in the cache and could not be downloaded ({error}): {HOW_TO_GET}."
        ) from error


def store(path: Path, content: bytes) -> None:
    # Renaming is atomic: another process sees the whole file or none.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"Spec-Bench's questions cannot be stored in {path.parent} ({error.strerror}): set GAMMATUNE_CACHE "
            "to a folder that can be written."
        ) from error


def read_bytes(path: Path, setting: str) -> bytes:
    """The whole file. Raises UserError, naming the setting it came from, for a path that holds no file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(0, "No regular file")  # a device such as /dev/zero never ends
        if path.stat().st_size > LARGEST_FILE:
            raise OSError(0, f"More than {LARGEST_FILE >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The question file {path} cannot be read ({error.strerror}): point {setting} at a copy of "
            "Spec-Bench's question.jsonl, or leave it out to have the file downloaded."
        ) from error


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_sha256(content: bytes, expected: str | None, what: str, remedy: str) -> None:
    """Raises UserError, with `remedy`, when the content has another sha256 than expected (None accepts any)."""
    found = sha256(content)
    if expected is not None and found != expected:
        raise UserError(f"{what} has sha256 {found}, but {expected} was expected: {remedy}.")


def read_questions(content: bytes, path: Path) -> list[Question]:
    """Every line as a question. Raises UserError, naming the line, for one that is none or repeats a question_id."""
    if not content.strip():
        raise UserError(
            f"The question file {path} is empty: write one JSON object with question_id, category and turns per line."
        )
    questions, first_line = [], {}
    content = content.removeprefix(BOM_UTF8).removesuffix(b"\n")
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"Line {number} of {path}"
        question = read_question(line, where)
        if question.question_id in first_line:
            raise UserError(
                f"{where} repeats the question_id {question.question_id} of line {first_line[question.question_id]}: "
                "give each question its own."
            )
        first_line[question.question_id] = number
        questions.append(question)
    return questions


def read_question(line: bytes, where: str) -> Question:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a JSON object ({error}): fix or remove the line.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object but a {type(record).__name__}: fix or remove the line.")
    if missing := {"question_id", "category", "turns"} - set(record):
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}: every question needs question_id, category and turns.")
    question_id, category, turns = record["question_id"], record["category"], record["turns"]
    if type(question_id) is not int or question_id not in INT64:
        raise UserError(f"{where} has the question_id {shorten(question_id)}: make it a whole number of at most 64 bits.")
    if category not in CATEGORIES:
        raise UserError(f"{where} has the unknown category {shorten(category)}: choose one of {', '.join(CATEGORIES)}.")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise UserError(
            f"{where} has turns that are not a list of one or more strings: write them like "
            '["first prompt", "second prompt"].'
        )
    for number, turn in enumerate(turns, start=1):
        if not turn.strip():
            raise UserError(f"{where} has an empty turn {number}: give it text or remove it.")
        if not is_unicode(turn):
            raise UserError(f"{where} has half a character (a lone surrogate) in turn {number}: fix or remove it.")
    return Question(question_id, category, task_of(category), turns)


def is_unicode(text: str) -> bool:
    """JSON can spell halves of a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def select_questions(questions: list[Question], config: TasksConfig) -> list[Question]:
    """The questions that config.include names, at most config.limit of each task, in the order they came.

    Raises UserError for a name in config.include that matches no question.
    """
    return in_file_order(questions, queue_questions(questions, config))


def in_file_order(questions: list[Question], chosen: list[Question]) -> list[Question]:
    kept = {q.question_id for q in chosen}
    return [q for q in questions if q.question_id in kept]


def queue_questions(questions: list[Question], config: TasksConfig) -> list[Question]:
    """What `select_questions` chooses, one of each task in turn, in the order in which a growing limit takes them.

    So work that goes through them and is stopped has done all that some smaller limit asks for, and little more.
    """
    chosen = [q for q in questions if not config.include or {q.task, q.category} & set(config.include)]
    found = {name for q in chosen for name in (q.task, q.category)}
    for name in config.include:
        if name not in found:
            raise UserError(
                f"tasks.include names {name}, but the question file has none of it: it holds "
                f"{', '.join(sorted({q.category for q in questions}))}."
            )
    tasks = sorted(group_by(chosen, "task"), key=lambda group: chosen.index(group[0]))
    return take_turns([order_task(group, config.seed)[: config.limit] for group in tasks])


def take_turns(groups: list[list[Question]]) -> list[Question]:
    """One of each group in turn, until all are used up."""
    return [q for q in chain.from_iterable(zip_longest(*groups)) if q is not None]


def group_by(questions: list[Question], attribute: str) -> list[list[Question]]:
    key = attrgetter(attribute)
    return [list(group) for _, group in groupby(sorted(questions, key=key), key)]


def order_task(questions: list[Question], seed: int | None) -> list[Question]:
    """One task's questions in the order in which a limit takes them.

    With a seed: each category shuffled, then one of each category in turn, so that the first n hold equal shares (within
    one question, until a category runs out) and a larger limit keeps what a smaller one took.
    """
    if seed is None:
        return questions
    # Seeded by name, so that what one task or category gets does not depend on which others are included.
    groups = [Random(f"{seed}/{group[0].category}").sample(group, len(group)) for group in group_by(questions, "category")]
    Random(f"{seed}/{questions[0].task}").shuffle(groups)
    return take_turns(groups)
