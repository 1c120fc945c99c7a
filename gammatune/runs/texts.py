"""Texts that a run or a recording leaves beside its numbers, so that nobody needs a tokenizer to read its answers.

pieces.json: token id -> text of every id that was emitted, or that the drafter proposed in its place, and the beginning of
every question. It follows from the answers, so it is made again by the same command where it is missing or damaged.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from gammatune.files import read_derived, read_json, write_json
from gammatune.replay.table import AcceptanceTable
from gammatune.runs.store import REWRITTEN
from gammatune.tasks.questions import Question

LONGEST_QUESTION = 600  # characters of a question's turn; a retrieved document has thousands


def has_texts(file: Path) -> bool:
    """Whether they are there. Damaged ones are none, which is told."""
    return read_derived(file, partial(read_json, remedy=REWRITTEN)) is not None


def name_ids(table: AcceptanceTable) -> set[int]:
    """Ids of the answers, and of the drafter's tokens up to the first wrong one from each position."""
    ids = set()
    for turn in table.turns:
        ids.update(turn.output_ids.tolist())
        if turn.trace.ids is not None:
            ids.update(turn.trace.head_ids.tolist())
    return ids


def write_texts(file: Path, tokenizer, ids: Iterable[int], questions: list[Question]) -> None:
    """Decoded after an anchor, because some tokenizers drop the space before a first word."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    prefix = tokenizer.decode(anchor)
    pieces = {str(token): tokenizer.decode([*anchor, token]).removeprefix(prefix) for token in sorted(set(ids))}
    asked = {str(question.question_id): [text[:LONGEST_QUESTION] for text in question.turns] for question in questions}
    write_json(file, {"pieces": pieces, "questions": asked})
