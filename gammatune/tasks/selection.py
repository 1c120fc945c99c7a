"""Which part of a question set a run takes."""

from itertools import chain, groupby, zip_longest
from random import Random

from gammatune.config import TasksConfig
from gammatune.errors import UserError


def select_questions(questions: list, config: TasksConfig) -> list:
    """The questions that config.include names, at most config.limit of each task, in the order they came.

    Raises UserError for a name in config.include that matches no question.
    """
    chosen = [q for q in questions if not config.include or {q.task, q.category} & set(config.include)]
    check_include(config.include, chosen, questions)
    if config.limit is None:
        return chosen
    kept = {q.question_id for group in group_by(chosen, "task") for q in order_task(group, config.seed)[: config.limit]}
    return [q for q in chosen if q.question_id in kept]


def check_include(include: list[str], chosen: list, questions: list) -> None:
    found = {name for q in chosen for name in (q.task, q.category)}
    for name in include:
        if name not in found:
            raise UserError(
                f"tasks.include names {name}, but the question file has none of it: it holds "
                f"{', '.join(sorted({q.category for q in questions}))}."
            )


def group_by(questions: list, attribute: str) -> list[list]:
    def key(question):
        return getattr(question, attribute)

    return [list(group) for _, group in groupby(sorted(questions, key=key), key)]


def order_task(questions: list, seed: int | None) -> list:
    """One task's questions in the order in which a limit takes them.

    With a seed: each category shuffled, then one of each category in turn, so that the first n hold equal shares (within
    one question, as far as a category reaches) and a larger limit keeps what a smaller one took.
    """
    if seed is None:
        return questions
    # Seeded by name, so that what one task or category gets does not depend on which others are included.
    groups = [Random(f"{seed}/{group[0].category}").sample(group, len(group)) for group in group_by(questions, "category")]
    Random(f"{seed}/{questions[0].task}").shuffle(groups)
    return [q for q in chain.from_iterable(zip_longest(*groups)) if q is not None]
