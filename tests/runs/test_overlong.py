"""Questions that a pair cannot hold are found before anything is written, and left out only where that was asked for."""

import json

import pytest
from replay.made_tables import contents

from gammatune.config import TasksConfig
from gammatune.errors import UserError
from gammatune.files import read_json
from gammatune.models.pair import random_pair
from gammatune.replay.table import read_table
from gammatune.report.notes import describe_run, list_notes
from gammatune.runs.overlong import count_needs, find_overlong
from gammatune.runs.store import read_run
from gammatune.tasks.questions import Question

CONTEXT, ANSWER = 512, 12


@pytest.fixture
def long_file(question_file, tmp_path):
    """The small run's questions, and three that are too long: by one turn, by two turns, and by an earlier answer."""
    room = CONTEXT - len("\n") - 1  # a beginning of sequence, the prompt and a new line; one position is the answer's
    longs = ([" " * 20 + "x" * room], ["x" * 300, "x" * 300], ["x" * 240, "x" * (room - 240 - ANSWER - 2)])
    path = tmp_path / "long.jsonl"
    rows = [{"question_id": 70 + n, "category": "qa", "turns": turns} for n, turns in enumerate(longs)]
    path.write_text(question_file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    return path


SENTENCE = (
    "3 of 6 questions do not fit the 512 tokens that tiny-random can address, with 12 for each earlier answer and one for "
    "the answer itself: 70 (532 tokens), 71 (616 tokens), 72 (512 tokens); set tasks.overlong=skip to leave them out, or "
    "choose other tasks or another pair."
)


@pytest.mark.parametrize("make", ["make_runner", "make_recorder"])
def test_they_are_refused_before_anything_is_written(request, make, long_file, tmp_path):
    with pytest.raises(UserError) as refused:
        request.getfixturevalue(make)(tmp_path / "out", f"tasks.path={long_file}")
    assert str(refused.value) == SENTENCE
    assert not (tmp_path / "out").exists()


def test_a_run_and_a_recording_leave_them_out_say_so_and_agree(make_runner, make_recorder, undisturbed, long_file, tmp_path):
    words = (f"tasks.path={long_file}", "tasks.overlong=skip")
    runner, recorder = make_runner(tmp_path / "runs", *words), make_recorder(tmp_path / "tables", *words)
    runner.run()
    table, run = read_table(recorder.run()), read_run(runner.folder.path)
    assert contents(table) == contents(read_table(run.path / "acceptance.parquet"))
    assert {turn.question_id for turn in table.turns} == {9, 2, 5}
    assert table.facts["overlong"] == run.facts["overlong"] == [70, 71, 72]
    sentence = "3 of 6 questions left out: too long for the pair (70, 71, 72)."
    assert sentence in list_notes(run, "") and sentence in describe_run(run)
    assert not any("too long" in note for note in list_notes(read_run(undisturbed.folder.path), ""))
    assert "overlong" not in read_json(undisturbed.folder.path / "run.json", "remake it")


def test_a_run_is_named_by_the_questions_that_were_asked(make_runner, long_file, question_file, tmp_path):
    names = {
        make_runner(
            tmp_path, f"tasks.path={path}", "tasks.overlong=skip", f"decode.max_new_tokens={answer}"
        ).folder.path.name
        for path in (long_file, question_file)
        for answer in (12, 11)
    }
    assert len(names) == 4


def test_one_token_of_an_answer_is_enough():
    """The third long question above fits with an earlier answer of one token less."""
    pair, question = random_pair(), Question(72, "qa", "qa", ["x" * 240, "x" * (CONTEXT - 2 - 240 - ANSWER - 2)])
    assert [need.tokens for answer in (ANSWER, ANSWER - 1) for need in count_needs(pair, [question], answer)] == [512, 511]


@pytest.mark.parametrize("overlong", ["refuse", "skip"])
def test_where_none_is_left_nothing_can_be_skipped(make_config, overlong):
    config, pair = make_config("model_pair=tiny-random", "decode.max_new_tokens=12"), random_pair(context=64)
    config.tasks = TasksConfig(name="mine", overlong=overlong)
    needs = count_needs(pair, [Question(n, "qa", "qa", ["x" * 99]) for n in range(9)], 12)
    with pytest.raises(UserError) as refused:
        find_overlong(needs, pair, config)
    told = str(refused.value)
    assert told.startswith("9 of 9 questions do not fit the 64 tokens") and "4 (101 tokens) and 4 more; choose other" in told


def test_a_turn_of_any_size_is_counted_in_no_time():
    """As far as it can matter: ByteTokenizer would make 30 million ids of it."""
    (need,) = count_needs(random_pair(), [Question(1, "qa", "qa", ["x" * 30_000_000])], 12)
    assert CONTEXT < need.tokens < 10_000


def test_an_answer_that_reads_longer_than_it_was_written_still_fits(make_runner, tmp_path):
    """Halves of characters become three bytes each: the longest earlier answer loses its end, where it must."""
    session = make_runner(tmp_path).session
    question = Question(1, "qa", "qa", ["a" * 200, "b", "c" * 200])
    answers = ["\ufffd" * 12, "\ufffd" * 30]
    assert len(session.prompt(question, 1, answers[:1])) == 1 + 201 + 37 + 2
    ids = session.prompt(question, 2, answers)
    assert len(ids) <= CONTEXT - 1 and answers == ["\ufffd" * 12, "\ufffd" * 30]
    text = session.pair.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith("a" * 200 + "\n" + "\ufffd" * 12 + "\nb\n\ufffd") and text.endswith("c" * 200 + "\n")
