"""Questions that an earlier table of the same work holds already, finished or not, for a recording that goes beyond it.

Greedy answers and their traces depend on everything in a table's facts but on which questions are beside them. So whole
questions may be taken over where all other facts are equal, those of the question file's checksum included. The answers do
not depend on the drafter either: a table of another one has them for it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from gammatune.errors import UserError, clip, one_line
from gammatune.files import canonical, hash_file
from gammatune.replay.table import TABLE_FILE, AcceptanceTable, AcceptanceTurn, TableError, read_table
from gammatune.runs.acceptance import PARTS, Held
from gammatune.runs.session import Session
from gammatune.tasks.prompts import answer_text
from gammatune.tasks.questions import Question

SELECTION = ("name", "source", "include", "limit", "seed")  # facts of the tasks that choose questions
NAMED = 3  # differences that a sentence names at most
REMEDY = "give a table of the same pair, question file, drafter and settings, or leave --extend out"
REMEDY_ANSWERS = "give a table of the same target, question file and settings, or leave --answers out"
OF_DRAFTER = ("pair", "drafter", "gamma_max", "forwards_per_token")  # facts that no answer depends on


@dataclass
class Earlier:
    """An earlier table, or the parts of a recording that was stopped."""

    path: Path  # as it was given
    tables: dict[Path, AcceptanceTable]  # by file
    sha256: dict[str, str]  # of each file, by its name
    answers_alone: bool = False  # whether it may be of another drafter, whose proposals nobody asks for

    @property
    def refusal(self) -> str:
        return "has no answers for this recording" if self.answers_alone else "cannot be extended"

    @property
    def remedy(self) -> str:
        return REMEDY_ANSWERS if self.answers_alone else REMEDY

    def check_facts(self, facts: dict) -> None:
        compared = drafter_left_out if self.answers_alone else dict
        for file, table in self.tables.items():
            if differing := find_differences(compared(table.facts), compared(facts)):
                shown = "; ".join(differing[:NAMED])
                more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
                raise UserError(f"{file} {self.refusal}, since {shown}{more}: {self.remedy}.")

    def select(self, session: Session, facts: dict) -> Held:
        """Those of the session's questions that are here with all their turns. facts: of the new table.

        Raises UserError where more than the choice of questions differs, or where one was asked with another prompt.
        """
        self.check_facts(facts)
        turns: dict[int, list[AcceptanceTurn]] = {}
        for table in self.tables.values():
            for turn in table.turns:
                turns.setdefault(turn.question_id, []).append(turn)
        held = {}
        for question in session.questions.questions:
            found = sorted(turns.get(question.question_id, []), key=lambda turn: turn.turn)
            if [turn.turn for turn in found] == list(range(len(question.turns))):
                self.check_prompts(session, question, found)
                held[question.question_id] = found
        return held

    def check_prompts(self, session: Session, question: Question, found: list[AcceptanceTurn]) -> None:
        answers = []
        for turn in found:
            prompt = session.prompt(question, turn.turn, answers)
            there, here = (turn.prompt_tokens, turn.budget), (len(prompt), session.budget(len(prompt)))
            if there != here:
                raise UserError(
                    f"{self.path} {self.refusal}: turn {turn.turn + 1} of question {question.question_id} has {there[0]} "
                    f"tokens and {there[1]} for its answer there, but {here[0]} and {here[1]} here; {self.remedy}."
                )
            answers.append(answer_text(session.pair.tokenizer, turn.output_ids.tolist()))

    def describe(self, held: Held) -> dict:
        """For the provenance of the new table, which takes over what is held."""
        folder = self.path.resolve()
        return {"folder": (folder if folder.is_dir() else folder.parent).name, "files": self.sha256, "questions": len(held)}


def read_earlier(path: Path, answers_alone: bool = False) -> Earlier:
    """A table, a folder that holds one, or the folder of a recording that is not finished.

    A damaged part is left out, which is told. Raises UserError where nothing can be read.
    """
    tables, option = {}, "--answers" if answers_alone else "--extend"
    for file in find_files(path):
        try:
            tables[file] = read_table(file)
        except TableError as error:
            if file.parent.name != PARTS:
                raise
            print(one_line(f"gammatune: {file} is left out: {error}"), file=sys.stderr)
    if not tables:
        raise UserError(
            f"{path} holds neither an acceptance table nor parts of a recording: give {option} what an earlier "
            "`gammatune record` has made."
        )
    return Earlier(path, tables, {file.name: hash_file(file) for file in tables}, answers_alone)


def find_files(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
    except OSError:  # a name that is too long: reading it says so
        return [path]
    whole = path / TABLE_FILE
    return [whole] if whole.exists() else sorted((path / PARTS).glob("*.parquet"))


def find_differences(there: dict, here: dict) -> list[str]:
    """In words, what differs between two tables' facts, which questions they chose apart."""
    there, here = flatten(choice_left_out(there)), flatten(choice_left_out(json.loads(canonical(here))))
    return [
        f"{one_line(clip(name))} is {show(there, name)} there and {show(here, name)} here"
        for name in sorted(there.keys() | here.keys())
        if name not in there or name not in here or there[name] != here[name]
    ]


def choice_left_out(facts: dict) -> dict:
    tasks = facts.get("tasks")
    tasks = {name: value for name, value in tasks.items() if name not in SELECTION} if isinstance(tasks, dict) else tasks
    return {name: value for name, value in facts.items() if name != "overlong"} | {"tasks": tasks}


def drafter_left_out(facts: dict) -> dict:
    """What the target's answers depend on."""
    left = {name: value for name, value in facts.items() if name not in OF_DRAFTER}
    weights, quantization = facts.get("weights"), facts.get("quantization")
    if isinstance(weights, dict):
        left["weights"] = weights.get("target")
    if isinstance(quantization, list):
        left["quantization"] = quantization[:1]
    return left


def flatten(facts: dict, prefix: str = "") -> dict:
    """Nested facts by dotted names."""
    flat = {}
    for name, value in facts.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def show(facts: dict, name: str) -> str:
    return one_line(clip(str(facts[name]), 40)) if name in facts else "nothing"
