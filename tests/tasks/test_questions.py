import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from gammatune.config import TASKS, TasksConfig
from gammatune.errors import UserError
from gammatune.tasks.questions import SPECBENCH_SHA256, Question, load_questions

GOOD = {"question_id": 1, "category": "qa", "turns": ["Why?"]}


def load_mine(path, **fields):
    return load_questions(TasksConfig(name="mine", source="specbench", path=str(path), checksum=None, **fields))


def test_spec_bench_has_480_questions_and_560_turns(real_file):
    loaded = load_questions(TasksConfig(name="specbench", source="specbench", path=str(real_file)))
    assert loaded.checksum == SPECBENCH_SHA256
    assert len({q.question_id for q in loaded.questions}) == 480
    assert sum(len(q.turns) for q in loaded.questions) == 560
    assert Counter(q.task for q in loaded.questions) == dict.fromkeys(TASKS, 80)
    assert [q.question_id for q in loaded.questions] == list(range(81, 561))


def test_a_seeded_subset_of_spec_bench_takes_each_category_equally(real_file):
    config = TasksConfig(name="mt", source="specbench", path=str(real_file), include=["mt_bench"], limit=16, seed=3)
    chosen = load_questions(config).questions
    assert set(Counter(q.category for q in chosen).values()) == {2} and len(chosen) == 16


def test_the_environment_names_the_file_and_the_config_beats_it(real_file, write_questions, monkeypatch):
    monkeypatch.setenv("SPECBENCH_PATH", str(real_file))
    assert len(load_questions(TasksConfig(name="a", source="specbench")).questions) == 480
    assert len(load_mine(write_questions(GOOD)).questions) == 1


def test_own_questions_are_read_without_a_pinned_checksum(write_questions):
    extra = {"question_id": 7, "category": "writing", "turns": ["Schreib über Öl.", "Kürzer."], "reference": ["x"]}
    path = write_questions(GOOD, extra)
    loaded = load_mine(path)
    assert loaded.questions == [
        Question(1, "qa", "qa", ["Why?"]),
        Question(7, "writing", "mt_bench", ["Schreib über Öl.", "Kürzer."]),
    ]
    assert loaded.checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_without_a_last_newline_or_with_windows_line_ends_is_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(
        b'{"question_id": 1, "category": "qa", "turns": ["a"]}\r\n{"question_id": 2, "category": "rag", "turns": ["b"]}'
    )
    assert [q.task for q in load_mine(path).questions] == ["qa", "rag"]


@pytest.mark.parametrize(
    "second, words",
    [
        ("{not json", ["Line 2 of", "not a JSON object"]),
        ("", ["Line 2 of", "not a JSON object"]),
        ("[1, 2]", ["Line 2 of", "a list"]),
        ({"question_id": 2, "turns": ["a"]}, ["Line 2 of", "lacks category"]),
        ({**GOOD, "turns": ["again"]}, ["Line 2 of", "repeats the question_id 1 of line 1"]),
        ({**GOOD, "question_id": "2"}, ["Line 2 of", "question_id '2'", "whole number"]),
        ({**GOOD, "question_id": True}, ["Line 2 of", "question_id True"]),
        ({**GOOD, "question_id": 2, "category": "poetry"}, ["Line 2 of", "unknown category 'poetry'", "writing"]),
        ({**GOOD, "question_id": 2, "category": ["qa"]}, ["Line 2 of", "unknown category"]),
        ({**GOOD, "question_id": 2, "turns": ["a", "  "]}, ["Line 2 of", "empty turn 2"]),
        ({**GOOD, "question_id": 2, "turns": []}, ["Line 2 of", "list of one or more strings"]),
        ({**GOOD, "question_id": 2, "turns": "a"}, ["Line 2 of", "list of one or more strings"]),
        ({**GOOD, "question_id": 2, "turns": ["\ud800"]}, ["Line 2 of", "half a character", "turn 1"]),
        ("[" * 100_000, ["Line 2 of", "not a JSON object"]),
    ],
)
def test_a_bad_line_is_named(write_questions, second, words):
    with pytest.raises(UserError) as caught:
        load_mine(write_questions(GOOD, second))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question_id": 1, "category": "qa", "turns": ["caf\xe9"]}\n')
    with pytest.raises(UserError, match="Line 1 of"):
        load_mine(path)


def test_an_empty_file_is_refused(write_questions):
    with pytest.raises(UserError, match="is empty"):
        load_mine(write_questions())


def test_an_include_that_matches_nothing_is_refused(write_questions):
    with pytest.raises(UserError, match="names rag, but the question file has none of it: it holds qa"):
        load_mine(write_questions(GOOD), include=["qa", "rag"])


def test_the_very_file_that_was_checked_is_read_as_it_is_written(write_questions, tmp_path):
    """Not another one that its name matches as a pattern, and no text that looks like a date becomes one."""
    path = write_questions({**GOOD, "question_id": 2**62, "turns": ["2024-01-01"]}).rename(tmp_path / "g[1].jsonl.gz")
    write_questions(GOOD).rename(tmp_path / "g1.jsonl.gz")
    assert load_mine(path).questions == [Question(2**62, "qa", "qa", ["2024-01-01"])]


def test_torch_is_not_imported():
    script = "import sys, gammatune.tasks.questions, gammatune.tasks.prompts\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
