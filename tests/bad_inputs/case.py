"""What a bad input is, and what a good answer to it looks like."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: a run of well under a second: put before the words of a case that decodes
SMALL = ("run", "model_pair=tiny-random", "runtime=eager", "tasks=specbench", "tasks.path=questions.jsonl")
SMALL += ("tasks.checksum=null", "decode.max_new_tokens=8", "policy=fixed")
QUESTIONS = (
    {"question_id": 9, "category": "qa", "turns": ["Why does ice float?"]},
    {"question_id": 5, "category": "writing", "turns": ["A poem.", "Shorter."]},
)


def nothing(folder: Path) -> None:
    """Most cases need no files."""


def write_questions(folder: Path) -> None:
    """What SMALL asks."""
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))


@dataclass(frozen=True)
class Case:
    """One command that should end in one true sentence."""

    name: str
    words: tuple[str, ...]  # after `gammatune`
    says: str = ""  # regular expression: what is wrong, as the sentence must name it
    prepare: Callable[[Path], None] = nothing  # makes the files, in the empty folder that the command runs in
    code: int | tuple[int, ...] = 2  # exit codes that are right


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


def complaint(case: Case, outcome: Outcome, limit_s: float = 10.0) -> str:
    """What is wrong with the answer to a case, "" where nothing is."""
    codes = case.code if isinstance(case.code, tuple) else (case.code,)
    told = outcome.err.strip()
    last = told.splitlines()[-1] if told else ""
    if "Traceback" in outcome.out + told:
        return f"traceback: {last}"
    if outcome.seconds > limit_s:
        return f"took {outcome.seconds:.0f} s"
    if outcome.code not in codes:
        return f"exit code {outcome.code} instead of {codes}: {last}"
    shown = outcome.out + ("" if outcome.code == 0 else told)  # a progress bar may move the cursor
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.replace("\r", "")):
        return "control characters reach the terminal"
    if outcome.code == 0:
        return ""
    if not last.endswith("."):
        return f"no sentence at the end: {last!r}"
    if not re.search(case.says, last):
        return f"does not say {case.says!r}: {last}"
    return ""
