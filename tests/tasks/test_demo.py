import re
from collections import Counter

import pytest

from gammatune.config import TASKS, TasksConfig
from gammatune.tasks.questions import load_questions


@pytest.fixture(scope="module")
def demo():
    return load_questions(TasksConfig(name="demo")).questions


def test_the_demo_set_covers_the_six_tasks(demo):
    assert Counter(q.task for q in demo) == dict.fromkeys(TASKS, 4)
    assert [q.question_id for q in demo] == list(range(1, 25))


def test_only_the_mt_bench_like_questions_have_two_turns(demo):
    assert all(len(q.turns) == (2 if q.task == "mt_bench" else 1) for q in demo)
    assert {q.category for q in demo if q.task == "mt_bench"} == {"writing", "math", "coding", "extraction"}


def test_no_demo_prompt_is_repeated_or_untidy(demo):
    turns = [turn for q in demo for turn in q.turns]
    assert len(set(turns)) == len(turns)
    assert not [turn for turn in turns if turn != turn.strip() or re.search("  |\r|\t", turn)]


def test_articles_are_long_and_questions_about_passages_end_in_a_question(demo):
    lengths = [len(q.turns[0].split()) for q in demo if q.task == "summarization"]
    assert all(250 <= n <= 400 for n in lengths), lengths
    assert all(len(q.turns[0].splitlines()) == 5 for q in demo if q.task == "rag")


def test_the_demo_set_shares_no_prompt_with_spec_bench(demo, real_file):
    others = load_questions(TasksConfig(name="s", source="specbench", path=str(real_file))).questions
    windows = {w for q in others for turn in q.turns for w in eight_words(turn)}
    assert len(windows) > 10_000
    assert not [w for q in demo for turn in q.turns for w in eight_words(turn) if w in windows]


def eight_words(text):
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}
