"""The last word on a cell: did every answer equal the target's own? Read from the stored logs, one question at a time."""

from itertools import zip_longest

from gammatune.decoding.exactness import compare_answers
from gammatune.errors import UserError
from gammatune.records import TurnLog
from gammatune.runs.session import Session
from gammatune.runs.store import Cell, read_log
from gammatune.tasks.prompts import answer_text
from gammatune.tasks.questions import Question


def judge_cell(session: Session, reference: list[list[TurnLog]], cell: Cell, greedy: bool) -> dict:
    """Counts and status of one cell. reference: the autoregressive arm's turns, by question.

    Sampled answers cannot be compared one to one: exact is None there.
    """
    summary = {
        "status": "ok",
        "exact": True if greedy else None,
        "near_ties": 0,
        "turns": 0,
        "rounds": 0,
        "tokens": 0,
        "repetitions": 0,
        "error": None,
        "differences": [],
    }
    by_id = {question.question_id: question for question in session.questions.questions}
    for wanted, got in pair_questions(reference, cell):
        for turn in got:
            summary["turns"] += 1
            summary["rounds"] += len(turn.rounds)
            summary["tokens"] += len(turn.output_ids)
            summary["repetitions"] = max(summary["repetitions"], turn.repetition + 1)
        if greedy and wanted:
            judge_question(session, by_id[got[0].question_id], (wanted, got), summary)
    return summary


def pair_questions(reference: list[list[TurnLog]], cell: Cell):
    """Yield (reference turns, cell turns) question by question; both logs are in the same order.

    An arm that failed has fewer questions, which are then a prefix of the reference's; one whose reference failed gets [].
    """
    for wanted, got in zip_longest(reference, group_questions(cell), fillvalue=[]):
        if not got:
            return
        if wanted and (wanted[0].question_id, wanted[0].repetition) != (got[0].question_id, got[0].repetition):
            raise UserError(f"{cell.folder} holds other questions than the run's ar arm: delete both folders and run again.")
        yield wanted, got


def group_questions(cell: Cell):
    group: list[TurnLog] = []
    for turn in (logged.turn for logged in read_log(cell.turns_file)):
        if group and (turn.question_id, turn.repetition) != (group[0].question_id, group[0].repetition):
            yield group
            group = []
        group.append(turn)
    if group:
        yield group


def judge_question(session: Session, question: Question, logs: tuple[list, list], summary: dict) -> None:
    """Compare turn by turn. After a difference the later turns answer another prompt, so there is nothing to compare."""
    answers = []
    for index, (wanted, got) in enumerate(zip(*logs, strict=True)):
        if wanted.output_ids != got.output_ids:
            prompt = session.prompt(question, index, answers)
            verdict = compare_answers(session.engine, prompt, wanted.output_ids, got.output_ids)
            summary["differences"].append(
                {"question_id": question.question_id, "turn": index, "repetition": got.repetition, **vars(verdict)}
            )
            if verdict.status == "near_tie":
                summary["near_ties"] += 1
            else:
                summary |= {"status": "wrong_output", "exact": False}
            return
        answers.append(answer_text(session.pair.tokenizer, wanted.output_ids))
