from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gammatune.config import CATEGORIES, TasksConfig, task_of
from gammatune.tasks.questions import Question, queue_questions, select_questions

QUESTIONS = st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=60).map(
    lambda names: [Question(i, name, task_of(name), ["?"]) for i, name in enumerate(names)]
)
LIMITS = st.integers(1, 12)
SEEDS = st.integers(0, 2**31)
# Stored so that a subset behind published numbers stays the same subset.
SEED_0 = (9, 19, 26, 38)


def select(questions, **fields):
    return select_questions(questions, TasksConfig(name="t", **fields))


@given(QUESTIONS, LIMITS, st.none() | SEEDS)
def test_a_subset_keeps_the_order_and_fills_the_limit_of_each_task(questions, limit, seed):
    chosen = select(questions, limit=limit, seed=seed)
    assert [q.question_id for q in chosen] == sorted({q.question_id for q in chosen})
    there = Counter(q.task for q in questions)
    assert Counter(q.task for q in chosen) == {task: min(limit, n) for task, n in there.items()}


@given(QUESTIONS, LIMITS)
def test_without_a_seed_the_first_of_each_task_are_taken(questions, limit):
    for task in {q.task for q in questions}:
        mine = [q for q in questions if q.task == task]
        assert [q for q in select(questions, limit=limit) if q.task == task] == mine[:limit]


@given(QUESTIONS, LIMITS, SEEDS)
def test_a_seeded_subset_is_the_same_every_time_and_grows_with_the_limit(questions, limit, seed):
    chosen = select(questions, limit=limit, seed=seed)
    assert chosen == select(questions, limit=limit, seed=seed)
    larger = select(questions, limit=limit + 1, seed=seed)
    assert {q.question_id for q in chosen} <= {q.question_id for q in larger}


@given(QUESTIONS, LIMITS, st.none() | SEEDS, st.data())
def test_any_beginning_of_the_queue_is_a_smaller_limit_and_part_of_the_next(questions, limit, seed, data):
    """So a recording that was stopped anywhere has equal shares of all tasks, and all questions of some smaller limit."""
    queue = [q.question_id for q in queue_questions(questions, TasksConfig(name="t", limit=limit, seed=seed))]
    begun = set(queue[: data.draw(st.integers(1, len(queue)))])
    asked = [{q.question_id for q in select(questions, limit=each, seed=seed)} for each in range(1, limit + 1)]
    assert len(queue) == len(set(queue)) and set(queue) == asked[-1]
    done = sum(each <= begun for each in asked)
    assert begun <= asked[min(done, limit - 1)]


@given(QUESTIONS, LIMITS, SEEDS)
def test_a_seeded_subset_gives_each_category_of_a_task_an_equal_share(questions, limit, seed):
    there = Counter(q.category for q in questions)
    taken = Counter(q.category for q in select(questions, limit=limit, seed=seed))
    for category in there:
        siblings = [c for c in there if task_of(c) == task_of(category)]
        assert taken[category] == there[category] or taken[category] >= max(taken[c] for c in siblings) - 1


@given(QUESTIONS, SEEDS)
def test_what_a_task_gets_does_not_depend_on_the_other_tasks(questions, seed):
    task = questions[0].task
    alone = select(questions, include=[task], limit=2, seed=seed)
    assert alone == [q for q in select(questions, limit=2, seed=seed) if q.task == task]


def test_seeds_differ_and_one_subset_is_fixed_for_good():
    questions = [Question(i, "qa", "qa", ["?"]) for i in range(40)]
    subsets = [tuple(q.question_id for q in select(questions, limit=4, seed=seed)) for seed in range(20)]
    assert len(set(subsets)) == 20
    assert subsets[0] == SEED_0


def test_include_takes_tasks_and_categories():
    questions = [Question(i, name, task_of(name), ["?"]) for i, name in enumerate(CATEGORIES)]
    assert [q.category for q in select(questions, include=["math", "rag"])] == ["math", "rag"]
    assert len(select(questions, include=["mt_bench"])) == 8
    assert len(select(questions, include=["mt_bench"], limit=3)) == 3
    assert len(select(questions, include=["mt_bench", "math", "qa"])) == 9
