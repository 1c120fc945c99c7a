"""Acceptance tables on disk: recorded by `gammatune record`, and left by every greedy run of its own answers.

results/acceptance/<pair>-<tasks>-<hash>/
    config.json         everything that the hash is made of
    provenance.json     where and with what, written before the first forward
    parts/              one small table per question, so that a killed recording goes on; removed at the end
    acceptance.parquet  all of them
    pieces.json         texts of ids and questions (gammatune.runs.texts)
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gammatune.decoding.loop import Generation
from gammatune.files import read_derived
from gammatune.records import TurnLog
from gammatune.replay.table import (
    TABLE_FILE,
    AcceptanceTable,
    AcceptanceTurn,
    join_tables,
    read_table,
    write_table,
)
from gammatune.runs.session import Session, naming
from gammatune.tasks.prompts import answer_text
from gammatune.tasks.questions import Question

# (question, turn, prompt ids) -> the target's own greedy answer
Answer = Callable[[Question, int, list[int]], Generation | TurnLog]
Held = dict[int, list[AcceptanceTurn]]  # by question id, all turns of each
Stop = Callable[[int], bool]  # (questions that are complete) -> whether that is enough for now
PARTS = "parts"


@dataclass
class Recording:
    """A folder that fills question by question."""

    folder: Path
    facts: dict  # what every part says about itself

    @property
    def table(self) -> Path:
        return self.folder / TABLE_FILE

    @property
    def parts(self) -> Path:
        return self.folder / PARTS

    def part(self, question: Question) -> Path:
        return self.parts / f"{question.question_id}.parquet"

    def finished(self) -> bool:
        """Whether the whole table is there and can be read. One that is damaged is made again, which is told."""
        if read_derived(self.table, read_table) is None:
            return False
        self.remove_parts()
        return True

    def complete(
        self, session: Session, answer: Answer, held: Held | None = None, stop: Stop | None = None
    ) -> AcceptanceTable:
        """Trace the questions that are missing or damaged, then join all parts in the order of the questions.

        held: traced already, elsewhere. They come first; then the queue's order, so that whatever is done when this is
        killed has equal shares of all tasks. stop: asked before each question; where it ends the recording, the parts stay
        for the next call, no table is written, and what is returned holds the questions so far.
        """
        self.parts.mkdir(exist_ok=True)
        held, questions = held or {}, {question.question_id: question for question in session.questions.questions}
        parts = {number: read_derived(self.part(question), read_table) for number, question in questions.items()}
        missing = [number for number in session.questions.queue if number in parts and parts[number] is None]
        missing.sort(key=lambda number: number not in held)
        for number in tqdm(missing, desc="recording", unit="question", disable=None, file=sys.stderr):
            if stop and stop(sum(part is not None for part in parts.values())):
                return join_tables([part for part in parts.values() if part is not None], self.facts)
            turns = held.get(number) or trace_question(session, questions[number], answer, self.facts["gamma_max"])
            parts[number] = AcceptanceTable(turns, self.facts)
            write_table(parts[number], self.part(questions[number]))
        whole = join_tables(list(parts.values()), self.facts)
        write_table(whole, self.table)
        self.remove_parts()
        return whole

    def remove_parts(self) -> None:
        if self.parts.exists():
            shutil.rmtree(self.parts)


def trace_question(session: Session, question: Question, answer: Answer, depth: int) -> list[AcceptanceTurn]:
    """All turns of a question: the target's answers, and what the drafter would propose at each of their positions."""
    answers, turns = [], []
    for index in range(len(question.turns)):
        prompt = session.prompt(question, index, answers)
        budget = session.budget(len(prompt))
        with naming(question, index):
            made = answer(question, index, prompt)
            trace = session.engine.trace(prompt, made.output_ids, budget, depth)
        answers.append(answer_text(session.pair.tokenizer, made.output_ids))
        turns.append(
            AcceptanceTurn(
                question_id=question.question_id,
                category=question.category,
                task=question.task,
                turn=index,
                prompt_tokens=len(prompt),
                budget=budget,
                finish=made.finish,
                output_ids=np.array(made.output_ids, dtype=np.int32),
                trace=trace,
            )
        )
    return turns


def record_logged(session: Session, recording: Recording, answers: list[list[TurnLog]]) -> None:
    """The table of answers that an autoregressive arm has logged, question by question."""
    logs = {turns[0].question_id: turns for turns in answers}
    recording.complete(session, lambda question, index, prompt: logs[question.question_id][index])
