"""A recording that takes over the questions of an earlier one makes the table that it would have made alone."""

import json

import numpy as np
import pytest
from runs.killing import ENDED_WELL, count_writes, disturbed, kill
from runs.tracing import count_traces, same

from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.files import hash_file, read_json
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench, measure_speeds
from gammatune.replay.table import AcceptanceTable, read_table, write_table
from gammatune.runs.earlier import read_earlier
from gammatune.studies.drafters import Contender, add_lists, put_first

MANY = [
    {
        "question_id": 10 * i + j,
        "category": category,
        "turns": [f"{category} {j}", "Shorter."][: 1 + (category == "writing")],
    }
    for i, category in enumerate(("writing", "qa", "rag"), start=1)
    for j in range(4)
]
#: of which a limit of 1 takes 10, 20 and 30, a limit of 2 those and 11, 21 and 31, and so on
FIRST, SECOND = [10, 20, 30], [11, 21, 31]


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """tasks.path=... of a file with four questions of each of three tasks."""
    path = tmp_path_factory.mktemp("many") / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in MANY))
    return f"tasks.path={path}"


@pytest.fixture(scope="session")
def make_many(make_recorder, many):
    """make_many(out, limit, *overrides) -> Recorder of so many questions of each task."""
    return lambda out, limit, *overrides, **options: make_recorder(out, many, f"tasks.limit={limit}", *overrides, **options)


@pytest.fixture(scope="session")
def whole(make_many, tmp_path_factory):
    """Tables recorded in one go, by limit."""
    folder = tmp_path_factory.mktemp("whole")
    return {limit: make_many(folder, limit).run() for limit in (1, 2, 4)}


@pytest.fixture
def traced(monkeypatch):
    return count_traces(monkeypatch)


def stop(recorder, traced, turns: int) -> None:
    """Record so many turns and press Ctrl-C."""
    traced.stop_at = len(traced) + turns
    with pytest.raises(KeyboardInterrupt):
        recorder.run()
    traced.stop_at = None


def test_a_table_grows(make_many, whole, traced, tmp_path):
    path = make_many(tmp_path, 4, extend=whole[2]).run()
    assert same(path, whole[4])
    assert len(traced) == 2 * (2 + 1 + 1)  # two more questions of each task, one of which has two turns
    taken = read_json(path.parent / "provenance.json", "")["sessions"][0]["extended"]
    wanted = {"folder": whole[2].parent.name, "files": {"acceptance.parquet": hash_file(whole[2])}, "questions": 6}
    assert taken == wanted


@pytest.mark.parametrize("folder", [True, False])
def test_a_smaller_table_is_cut_out_of_a_larger_one_without_a_forward(make_many, whole, traced, tmp_path, capsys, folder):
    recorder = make_many(tmp_path, 1, extend=whole[4].parent if folder else whole[4])
    assert same(recorder.run(), whole[1])
    assert traced == [] and recorder.describe_times() == "No answer of the target was left to make."
    assert f"3 of 3 questions are taken over from {whole[4].parent}" in capsys.readouterr().err


def test_what_is_stopped_holds_what_a_smaller_limit_asks_for(make_many, whole, traced, tmp_path):
    """Four turns a round of three tasks: after five, all first questions and no third one."""
    recorder = make_many(tmp_path, 4)
    stop(recorder, traced, 4 + 2)
    parts = recorder.recording.parts
    assert sorted(int(file.stem) for file in parts.iterdir()) == sorted([*FIRST, SECOND[0]])
    del traced[:]
    smaller = make_many(tmp_path, 1, extend=recorder.recording.folder).run()
    assert same(smaller, whole[1]) and traced == []
    files = {f"{number}.parquet": hash_file(parts / f"{number}.parquet") for number in (*FIRST, SECOND[0])}
    assert read_json(smaller.parent / "provenance.json", "")["sessions"][0]["extended"]["files"] == files
    assert same(make_many(tmp_path, 2, extend=recorder.recording.folder).run(), whole[2])
    assert len(traced) == 2
    assert same(make_many(tmp_path, 4, extend=whole[2]).run(), whole[4])
    assert len(traced) == 2 + 8


def test_with_a_seed_too(make_many, traced, tmp_path):
    recorder = make_many(tmp_path, 4, "tasks.seed=3")
    stop(recorder, traced, 8)
    del traced[:]
    make_many(tmp_path, 2, "tasks.seed=3", extend=recorder.recording.folder).run()
    assert traced == []


def test_other_names_and_choices_of_the_same_file_are_the_same_work(make_many, whole, traced, tmp_path):
    path = make_many(tmp_path, 3, "tasks.include=[qa]", "tasks.name=mine", "tasks.seed=1", extend=whole[4]).run()
    assert traced == [] and {turn.task for turn in read_table(path).turns} == {"qa"}


def test_killed_at_a_write_it_goes_on_without_the_earlier_table(make_many, whole, tmp_path):
    """Also where what was taken over is gone by then: each part of it is on disk before the first forward."""

    def work(folder, **options):
        return lambda: make_many(folder, 2, **options).run()

    places = len(count_writes(work(tmp_path / "counted", extend=whole[1]), tmp_path / "counted"))
    assert places > 12
    for place in range(0, places, 5):
        folder = tmp_path / str(place)
        assert disturbed(work(folder, extend=whole[1]), folder, place, kill) != ENDED_WELL
        assert same(make_many(folder, 2).run(), whole[2])


def test_taken_over_parts_come_first(make_many, whole, traced, tmp_path):
    recorder = make_many(tmp_path, 2, extend=whole[1])
    stop(recorder, traced, 0)
    assert sorted(int(file.stem) for file in recorder.recording.parts.iterdir()) == FIRST


def test_another_drafter_is_recorded_beside_answers_that_are_there(make_many, whole, monkeypatch, tmp_path, capsys):
    alone = make_many(tmp_path / "alone", 2, drafter=Lookup()).run()
    monkeypatch.setattr("gammatune.studies.record.generate_autoregressive", None)  # the target is not asked
    path = make_many(tmp_path / "beside", 2, drafter=Lookup(), answers=whole[2]).run()
    assert same(path, alone) and path.parent.name == alone.parent.name
    assert f"Answers to 6 of 6 questions are those of {whole[2]}" in capsys.readouterr().err
    taken = read_json(path.parent / "provenance.json", "")["sessions"][0]["answers"]
    assert taken["files"] == {"acceptance.parquet": hash_file(whole[2])}


def test_a_list_of_two_is_what_their_own_tables_say(make_many, whole, tmp_path):
    """Recorded as drafter=[suffix,model], or put together of both tables: the same blocks, replayed the same."""
    listed = read_table(make_many(tmp_path, 2, drafter=FirstOf(drafters=[Suffix(), DraftModel()])).run())
    suffix = read_table(make_many(tmp_path, 2, drafter=Suffix(), answers=whole[2]).run())
    first, then = (Contender(str(n), table, from_ratio(8)) for n, table in enumerate([suffix, read_table(whole[2])]))
    joined = put_first(first, then)
    assert joined.name == "0, then 1" and joined.table.forwards_by_proposer == listed.forwards_by_proposer == [0, 1]
    for one, other in zip(joined.table.turns, listed.turns, strict=True):
        assert all(
            np.array_equal(each, vars(other.trace)[name]) for name, each in vars(one.trace).items() if name != "signals"
        )
    policies = [POLICIES[name]() for name in ("fixed", "gammatune_plus", "optimal_stopping")]
    speeds = [measure_speeds(build_bench(table, from_ratio(8)), policies) for table in (joined.table, listed)]
    assert np.array_equal(*speeds)
    assert [each.name for each in add_lists([first, then])] == ["0", "1", "0, then 1"]


def test_questions_that_have_no_answer_there_are_decoded(make_many, whole, tmp_path):
    path = make_many(tmp_path / "beside", 2, drafter=Lookup(), answers=whole[1]).run()
    assert same(path, make_many(tmp_path / "alone", 2, drafter=Lookup()).run())


def test_answers_of_other_decoding_are_refused(make_many, whole, tmp_path):
    with pytest.raises(UserError, match=r"has no answers .*, since decode.max_new_tokens is .*, or leave --answers out"):
        make_many(tmp_path, 1, "decode.max_new_tokens=7", drafter=Lookup(), answers=whole[1])


@pytest.mark.parametrize(
    ("overrides", "options", "told"),
    [
        (("decode.max_new_tokens=11",), {}, "decode.max_new_tokens is 12 there and 11 here"),
        ((), {"depth": 7}, "gamma_max is 24 there and 7 here"),
        ((), {"drafter": Lookup()}, "drafter.longest is nothing there and 3 here"),
        (("model_pair.cpu_dtype=bf16",), {}, "dtype is float32 there and bfloat16 here"),
        (("decode.max_new_tokens=9",), {"depth": 7}, "is 12 there and 9 here; gamma_max is 24 there and 7 here: give a"),
    ],
)
def test_other_work_is_refused_with_what_differs(make_many, whole, tmp_path, overrides, options, told):
    with pytest.raises(UserError) as error:
        make_many(tmp_path, 4, *overrides, extend=whole[1], **options)
    assert f"{whole[1]} cannot be extended, since " in str(error.value) and told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_questions_of_another_file_are_refused(make_many, whole, tmp_path):
    """Also where ids and lengths are the same: nothing in a table says what was asked but the file's checksum."""
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(question).replace("qa 1", "qa 7") + "\n" for question in MANY))
    with pytest.raises(UserError, match="since tasks.checksum is [0-9a-f]+… there and [0-9a-f]+… here: give a table of the"):
        make_many(tmp_path, 4, f"tasks.path={path}", extend=whole[1])


def test_another_prompt_of_the_same_question_is_refused(make_many, whole, tmp_path):
    """A table that a checkpoint's other tokenizer made, whose weights have the same name."""
    table = read_table(whole[1])
    table.turns[-1].prompt_tokens += 1
    path, length = tmp_path / "acceptance.parquet", table.turns[-1].prompt_tokens
    write_table(table, path)
    told = f"turn 1 of question 30 has {length} tokens and 12 for its answer there, but {length - 1} and 12 here"
    with pytest.raises(UserError, match=told):
        make_many(tmp_path, 4, extend=path)


def test_a_question_without_all_its_turns_is_recorded_again(make_many, whole, traced, tmp_path):
    table = read_table(whole[1])
    kept = [turn for turn in table.turns if (turn.question_id, turn.turn) != (10, 1)]
    write_table(AcceptanceTable(kept, table.facts), tmp_path / "acceptance.parquet")
    assert same(make_many(tmp_path, 1, extend=tmp_path).run(), whole[1])
    assert len(traced) == 2


def test_a_damaged_part_is_left_out_and_told_and_a_damaged_table_refused(make_many, whole, traced, tmp_path, capsys):
    recorder = make_many(tmp_path, 2)
    stop(recorder, traced, 4)
    part = recorder.recording.parts / "20.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    del traced[:]
    assert same(make_many(tmp_path, 1, extend=recorder.recording.folder).run(), whole[1])
    assert len(traced) == 1
    assert f"gammatune: {part} is left out: " in capsys.readouterr().err
    damaged = tmp_path / "acceptance.parquet"
    damaged.write_bytes(whole[1].read_bytes()[:-9])
    with pytest.raises(UserError, match="acceptance.parquet is "):
        read_earlier(tmp_path)


def test_a_folder_without_a_table_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "no", tmp_path / ("long" * 100)):
        with pytest.raises(UserError, match="give --extend what an earlier|There is no acceptance table|cannot be read"):
            read_earlier(path)
