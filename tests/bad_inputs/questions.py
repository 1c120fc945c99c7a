"""Question files that are none, or hold what no command can ask; and odd ones that are read as they are written."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from bad_inputs.case import SMALL, Case

GOOD = {"question_id": 9, "category": "qa", "turns": ["Why does ice float?"]}
PLAN = (*SMALL, "plan=true")  # what a question file may be is decided before anything is decoded
EDGES = (2**63, -(2**63) - 1, 2**70, True, 1.0, "9", None, [9], float("nan"))


def write(content: bytes, folder: Path, name: str = "questions.jsonl") -> None:
    (folder / name).write_bytes(content)


def rows(*questions: dict) -> bytes:
    return "".join(json.dumps(question) + "\n" for question in questions).encode()


def file(name: str, content: bytes, says: str, code: int = 2) -> Case:
    return Case(name, PLAN, says, partial(write, content), code)


def path(name: str, value: str, says: str, prepare: Callable = lambda folder: None) -> Case:
    return Case(name, (*PLAN, f"tasks.path={value}"), says, prepare)


def two_files(folder: Path) -> None:
    """Beside g[1].jsonl lies the file that its name would match as a pattern."""
    write(rows(GOOD | {"question_id": 77}), folder, "g1.jsonl")
    write(rows(GOOD)[:-9], folder, "g[1].jsonl")


def sparse(folder: Path) -> None:
    write(b"", folder)
    os.truncate(folder / "questions.jsonl", 2**40)


CASES = [
    path("missing", "none.jsonl", r"none\.jsonl cannot be read \(No such file or directory\): point tasks.path at"),
    path("device", "/dev/zero", r"/dev/zero cannot be read \(No regular file\)"),
    path("folder", ".", r"cannot be read \(Is a directory\)"),
    path("pipe", "pipe", r"pipe cannot be read \(No regular file\)", lambda folder: os.mkfifo(folder / "pipe")),
    path("circle", "loop", "loop cannot be read", lambda folder: (folder / "loop").symlink_to("loop")),
    path("pattern", "'g[1].jsonl'", r"Line 1 of g\[1\]\.jsonl is not a JSON object", two_files),
    path("two colons", "'a::b.jsonl'", "a::b.jsonl cannot be read"),
    Case("a terabyte of nothing", PLAN, r"More than 256 MiB", sparse),
    file("empty", b"", "is empty: write one JSON object"),
    file("white space", b" \n\n", "is empty"),
    file("blank line", rows(GOOD) + b"\n" + rows(GOOD), "Line 2 of .* is not a JSON object"),
    file("binary", bytes(range(256)), "Line 1 of .* is not a JSON object"),
    file("utf-16", rows(GOOD).decode().encode("utf-16"), "Line 1 of .* is not a JSON object"),
    file("no JSON", b"Why does ice float?\n", "Line 1 of .* is not a JSON object"),
    file("one list", json.dumps([GOOD]).encode(), "Line 1 of .* but a list"),
    file("deep", b"[" * 100_000 + b"\n", "Line 1 of .* is not a JSON object"),
    file("an id of 5,000 digits", rows(GOOD).replace(b"9", b"9" * 5000), "Line 1 of .* is not a JSON object"),
    file("five megabytes of text", b'"' + b"x" * 5_000_000 + b'"\n', "Line 1 of .* but a str"),
    file("repeated id", rows(GOOD, GOOD | {"turns": ["Again?"]}), "Line 2 of .* repeats the question_id 9 of line 1"),
    file("no turns", rows({"question_id": 9, "category": "qa"}), "Line 1 of .* lacks turns"),
    file("long category", rows(GOOD | {"category": "x" * 100_000}), r"unknown category 'x{1,40}\.\.\.x*'"),
    file("category is a list", rows(GOOD | {"category": ["qa"]}), "unknown category"),
    file("half a character", rows(GOOD | {"turns": ["\ud800"]}), "lone surrogate.* in turn 1"),
    *(file(f"turns {turns!r}", rows(GOOD | {"turns": turns}), "turns? ") for turns in ([], "text", [1], [" "], None)),
    *(
        file(f"id {value!r}", rows(GOOD | {"question_id": value}), "has the question_id .* of at most 64 bits")
        for value in EDGES
    ),
    file("a turn that is too long", rows(GOOD | {"turns": ["x" * 5_000_000]}), r"1 of 1 questions do not fit .*: 9 \("),
    # right, if odd
    file("byte order mark and carriage returns", b"\xef\xbb\xbf" + rows(GOOD).replace(b"\n", b"\r\n"), "", 0),
    file("dates and edges of 64 bits", rows(GOOD | {"question_id": -(2**63), "turns": ["2024-01-01"]}), "", 0),
    Case("plain text named .gz", (*PLAN, "tasks.path=q.jsonl.gz"), "", partial(write, rows(GOOD), name="q.jsonl.gz"), 0),
]


def fuzz(random: Random, count: int) -> Iterator[Case]:
    """Good files with bytes changed, cut or doubled: refused in a sentence, or still a question file."""
    good = rows(GOOD, GOOD | {"question_id": 2, "category": "writing", "turns": ["A poem.", "Shorter."]})
    for number in range(count):
        content = bytearray(good)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(content))
            content[at : at + random.choice((0, 1, 1, 30))] = random.choice((b"", random.randbytes(1), content[:at]))
        yield Case(f"question file {number}", PLAN, "", partial(write, bytes(content)), (0, 2))
