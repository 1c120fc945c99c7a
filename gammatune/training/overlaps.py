"""Prompts that a benchmark asks too: none of them may be trained on."""

import re
from collections.abc import Iterable
from pathlib import Path

from gammatune.config import TasksConfig
from gammatune.tasks.questions import Question, QuestionSet, has_specbench, load_questions

WORDS = 13  # in a row that no prompt shares with a question


class Overlaps:
    """What equals a turn of these questions, or shares WORDS words in a row with one; case and punctuation do not count."""

    def __init__(self, questions: Iterable[Question] = ()):
        turns = [split_words(turn) for question in questions for turn in question.turns]
        self.whole = {tuple(turn) for turn in turns}
        self.runs = {run for turn in turns for run in word_runs(turn)}

    def found(self, turns: list[str]) -> bool:
        return any(tuple(words) in self.whole or self.runs & word_runs(words) for words in map(split_words, turns))


def find_questions(path: Path | None) -> QuestionSet | None:
    """A question file of any content; without a path Spec-Bench's, where it is on this disk; None where it is not.

    Raises UserError for one that is missing or malformed.
    """
    if path is None and not has_specbench():
        return None
    return load_questions(TasksConfig(name="specbench", source="specbench", path=path and str(path), checksum=None))


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def word_runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
