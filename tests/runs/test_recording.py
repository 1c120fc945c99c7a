"""Recording goes on where it was killed, and every way to a table leads to the same one."""

import json
import os
import shutil

import pytest
from replay.made_tables import contents
from runs.tracing import count_traces, same
from shipped import POLICIES, make_policy

from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.known import read_known
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.files import hold_folder, read_json
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import read_table
from gammatune.report.views import run_tables
from gammatune.runs.store import read_run, read_texts
from gammatune.studies.replay_check import check_replay, replay_sentence


@pytest.fixture(scope="session")
def recorded(make_recorder, tmp_path_factory):
    """The path of a table that was recorded in one go."""
    return make_recorder(tmp_path_factory.mktemp("recorded")).run()


def test_a_table_holds_every_turn_in_the_order_of_the_questions(recorded):
    table = read_table(recorded)
    assert [(turn.question_id, turn.turn) for turn in table.turns] == [(9, 0), (2, 0), (5, 0), (5, 1)]
    assert table.watched and table.complete
    assert all(turn.tokens <= turn.budget == 12 for turn in table.turns)
    assert (table.facts["pair"], table.facts["device"], table.gamma_max) == ("tiny-random", "cpu", 24)
    assert table.facts["decode"]["max_new_tokens"] == 12 and "path" not in table.facts["tasks"]


def test_the_second_turn_follows_the_first_answer(recorded):
    first, second = read_table(recorded).turns[2:]
    assert second.prompt_tokens > first.prompt_tokens + first.tokens / 2


def test_only_the_table_and_its_papers_are_left(recorded):
    folder = recorded.parent
    papers = ["acceptance.parquet", "config.json", "lock", "pieces.json", "provenance.json"]
    assert sorted(file.name for file in folder.iterdir()) == papers
    config, facts = read_json(folder / "config.json", "remake it"), read_table(recorded).facts
    assert config == {"schema": 2, **facts}
    sessions = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 1 and sessions[0]["known_answers"] == 0


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_killed_recording_goes_on(make_recorder, recorded, monkeypatch, tmp_path, stop_at):
    """Traces 0 and 1 are two questions of one turn, 2 and 3 the turns of the third, which is only kept as a whole."""
    with monkeypatch.context() as patch:
        count_traces(patch, stop_at)
        recorder = make_recorder(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            recorder.run()
    folder = recorder.recording.folder
    assert not recorder.recording.table.exists()
    assert {"config.json", "provenance.json"} <= {file.name for file in folder.iterdir()}
    assert len(list(recorder.recording.parts.iterdir())) == min(stop_at, 2)
    traced = count_traces(monkeypatch)
    path = make_recorder(tmp_path).run()
    assert len(traced) == 4 - min(stop_at, 2)
    assert same(path, recorded)
    assert not recorder.recording.parts.exists()
    assert len(json.loads((folder / "provenance.json").read_text())["sessions"]) == 2


def test_a_recording_that_is_told_to_stop_returns_what_it_has(make_recorder, recorded, monkeypatch, tmp_path):
    recorder, asked = make_recorder(tmp_path), []
    table = recorder.gather(lambda done: asked.append(done) or done == 2)
    assert asked == [0, 1, 2] and [turn.question_id for turn in table.turns] == [9, 2]
    assert not recorder.recording.table.exists() and len(list(recorder.recording.parts.iterdir())) == 2
    traced = count_traces(monkeypatch)
    whole = make_recorder(tmp_path).gather(lambda done: False)
    assert len(traced) == 2 and contents(whole) == contents(read_table(recorded))
    assert same(recorder.recording.table, recorded)


def test_a_second_call_does_nothing(make_recorder, monkeypatch, tmp_path):
    path = make_recorder(tmp_path).run()
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.iterdir() if file.name != "lock"}
    traced = count_traces(monkeypatch)
    assert make_recorder(tmp_path).run() == path
    assert traced == []
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before


def test_other_work_gets_another_folder(make_recorder, recorded, tmp_path):
    changes = ("decode.max_new_tokens=11", "tasks.limit=1")
    names = {make_recorder(tmp_path, change).recording.folder.name for change in changes}
    names |= {make_recorder(tmp_path, depth=7).recording.folder.name, recorded.parent.name}
    names |= {make_recorder(tmp_path, drafter=each).recording.folder.name for each in (Lookup(), Lookup(longest=2))}
    assert len(names) == 6
    assert make_recorder(tmp_path, "seed=5").recording.folder.name == recorded.parent.name


def test_a_damaged_part_is_recorded_again(make_recorder, recorded, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        count_traces(patch, 2)
        recorder = make_recorder(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            recorder.run()
    part = recorder.recording.parts / "9.parquet"
    part.write_bytes(part.read_bytes()[:100])
    traced = count_traces(monkeypatch)
    assert same(make_recorder(tmp_path).run(), recorded)
    assert len(traced) == 3  # of four; the other part was good
    assert f"gammatune: {part} is damaged or was changed, so it is made again.\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["acceptance.parquet", "provenance.json", "parts"])
def test_a_damaged_finished_recording_is_made_again_and_no_more_than_that(
    make_recorder, recorded, monkeypatch, tmp_path, capsys, name
):
    folder = tmp_path / recorded.parent.name
    shutil.copytree(recorded.parent, folder)
    file = folder / name
    if name == "parts":  # of a process killed between the table and their removal
        file.mkdir()
        shutil.copy(recorded, file / "9.parquet")
    else:
        file.write_bytes(file.read_bytes()[:-300])
    traced = count_traces(monkeypatch)
    assert same(make_recorder(tmp_path).run(), recorded)
    assert len(traced) == (4 if name == "acceptance.parquet" else 0)
    assert ("acceptance.parquet is damaged" in capsys.readouterr().err) == (name == "acceptance.parquet")
    assert {path.name for path in folder.iterdir()} == {path.name for path in recorded.parent.iterdir()}


def test_sampling_and_a_gamma_max_out_of_range_are_refused(make_recorder, tmp_path):
    with pytest.raises(UserError, match="exists for greedy decoding only: set decode=greedy"):
        make_recorder(tmp_path, "decode=sample")
    for gamma_max in (0, 121):
        with pytest.raises(UserError, match=f"--gamma-max {gamma_max} must lie between 1 and 120"):
            make_recorder(tmp_path, depth=gamma_max)


def test_a_second_process_is_refused_and_told_of_out(make_recorder, tmp_path):
    recorder = make_recorder(tmp_path)
    with hold_folder(recorder.recording.folder), pytest.raises(UserError, match="choose another folder with --out FOLDER"):
        recorder.run()


@pytest.mark.parametrize(("load", "told"), [(7.0, True), (2.0, False)])
def test_the_printed_times_say_whether_the_machine_was_shared(make_recorder, monkeypatch, tmp_path, load, told):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    recorder = make_recorder(tmp_path)
    recorder.run()
    sentence = " The machine was shared (median load 7.0 on 2 cores): these times may be too high."
    assert recorder.describe_times().endswith(sentence) is told


def answers_of(runner, label: str) -> dict:
    return read_known(next(cell for cell in runner.folder.cells if cell.arm.label == label).turns_file)


def test_known_answers_of_a_run_give_the_same_table(make_recorder, recorded, undisturbed, tmp_path):
    recorder = make_recorder(tmp_path, known=answers_of(undisturbed, "fixed-3"))
    forwards, target = [], recorder.session.engine.target
    original = target.forward
    target.forward = lambda tokens, keep: forwards.append(keep) or original(tokens, keep)
    path = recorder.run()
    assert same(path, recorded)
    assert len(forwards) <= 3 * 4  # prefill and at most two blocks for each of four answers of at most twelve tokens
    provenance = json.loads((path.parent / "provenance.json").read_text())
    assert provenance["sessions"][0]["known_answers"] == 4


def test_wrong_and_partial_known_answers_change_nothing(make_recorder, recorded, undisturbed, tmp_path):
    known = answers_of(undisturbed, "ar")
    known[9, 0] = [token + 1 for token in known[9, 0]]
    del known[5, 0]
    known[5, 1] = known[5, 1][:2] + [99] * 50
    assert same(make_recorder(tmp_path, known=known).run(), recorded)


def test_a_run_leaves_the_table_that_record_makes(undisturbed, recorded):
    """Also after two passes: the first one's answers."""
    folder = undisturbed.folder.path
    assert same(folder / "acceptance.parquet", recorded)
    assert not (folder / "parts").exists()
    check = check_replay(read_run(folder))
    assert (check.differing, check.other_text, check.arms) == (0, 0, 3)


def test_a_run_without_a_table_says_so(make_runner, tmp_path):
    runner = make_runner(tmp_path, "acceptance=false")
    runner.run()
    assert not (runner.folder.path / "acceptance.parquet").exists()
    assert "Replay: not checked, since this run has no acceptance table" in replay_sentence(read_run(runner.folder.path))
    make_runner(tmp_path).run()
    assert "Replay: all " in replay_sentence(read_run(runner.folder.path))


def test_a_sampled_run_leaves_no_table(make_runner, tmp_path):
    runner = make_runner(tmp_path, "decode=sample")
    runner.run()
    assert not (runner.folder.path / "acceptance.parquet").exists()
    assert "Replay: not checked" in replay_sentence(read_run(runner.folder.path))


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_run_killed_between_its_arms_and_its_table_makes_it_next_time(
    make_runner, recorded, on_answer, monkeypatch, tmp_path, stop_at
):
    with monkeypatch.context() as patch:
        count_traces(patch, stop_at)
        runner = make_runner(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
    assert all(cell.done_file.exists() for cell in runner.folder.cells)
    assert not (runner.folder.path / "acceptance.parquet").exists()
    answered = []
    on_answer(lambda made, policy: answered.append(made))
    traced = count_traces(monkeypatch)
    make_runner(tmp_path).run()
    assert answered == [] and len(traced) == 4 - stop_at
    assert same(runner.folder.path / "acceptance.parquet", recorded)


def test_a_run_whose_reference_failed_leaves_no_table(make_runner, on_answer, tmp_path):
    def fail(made, policy):
        if type(policy).__name__ == "Autoregressive":
            raise RuntimeError("no memory")

    on_answer(fail)
    runner = make_runner(tmp_path)
    runner.run()
    assert runner.folder.reference.read_done()["status"] == "error"
    assert not (runner.folder.path / "acceptance.parquet").exists()


def test_any_policy_can_be_replayed_from_what_a_run_left(undisturbed):
    turns = prepare(read_table(undisturbed.folder.path / "acceptance.parquet"))
    for name in POLICIES:
        done = replay(turns, make_policy(name), keep_rounds=True)
        assert [sum(r.emitted for r in log) for log in done.logs] == [turn.tokens for turn in turns], name


def test_a_wrong_known_text_soon_costs_a_short_block_a_forward(make_recorder, tmp_path):
    """Gamma adapts: 12 tokens, all known ones wrong, and after a few rounds blocks of one token."""
    recorder = make_recorder(tmp_path)
    prompt = recorder.session.prompt(recorder.session.questions.questions[0], 0, [])
    own = recorder.decode(prompt)
    made = recorder.confirm(prompt, [token % 200 + 30 for token in own.output_ids])
    assert made.output_ids == own.output_ids
    assert len(made.rounds) == 12 and made.rounds[-2].planned < 3


def test_a_run_with_a_lookup_leaves_its_table_and_is_checked(make_runner, make_recorder, tmp_path):
    """The lookup has no signals, so no arm watches it; its table is the one that `record` makes."""
    arms = ("policy=[fixed,hf_heuristic,gammatune]", "decode.max_new_tokens=40")
    runner = make_runner(tmp_path, *arms, drafter=Lookup())
    runner.run()
    run = read_run(runner.folder.path)
    check = check_replay(run)
    assert (check.arms, check.differing, check.other_text) == (3, 0, 0)
    assert {r.forwards for arm in run.arms for turn in arm.turns for r in turn.rounds} == {0}
    table = read_table(runner.folder.path / "acceptance.parquet")
    assert table.facts["drafter"] == {"name": "lookup", "longest": 3, "shortest": 1} and not table.watched
    again = make_recorder(tmp_path / "again", "decode.max_new_tokens=40", drafter=Lookup()).run()
    assert same(again, runner.folder.path / "acceptance.parquet")


def test_a_run_with_a_list_of_drafters_is_checked_and_tells_who_proposed(make_runner, make_recorder, tmp_path):
    arms = ("policy=[fixed,hf_heuristic,gammatune_plus,optimal_stopping]", "decode.max_new_tokens=40")
    runner = make_runner(tmp_path, *arms, drafter=FirstOf([Suffix(), DraftModel()]))
    runner.run()
    run = read_run(runner.folder.path)
    check = check_replay(run)
    assert (check.arms, check.differing, check.other_text, check.unchecked) == (4, 0, 0, [])
    table = read_table(runner.folder.path / "acceptance.parquet")
    assert (table.forwards_by_proposer, table.forwards_per_token, table.watched) == ([0, 1], 1, True)
    again = make_recorder(tmp_path / "again", "decode.max_new_tokens=40", drafter=FirstOf([Suffix(), DraftModel()])).run()
    assert same(again, runner.folder.path / "acceptance.parquet")
    told = run_tables(run)["proposers"].numbers
    rounds = run.rounds[run.rounds["label"] == "fixed-3"]
    for place, name in enumerate(("suffix", "model")):
        (row,) = told[(told["label"] == "fixed-3") & (told["proposer"] == name)].to_dict("records")
        own = rounds[(rounds["proposer"] == place) & (rounds["drafted"] > 0)]
        assert (row["blocks"], row["drafted"], row["accepted"]) == (len(own), own["drafted"].sum(), own["accepted"].sum())
        assert row["drafted_share"] == own["drafted"].sum() / rounds["drafted"].sum()
        assert row["blocks"] and (row["forwards"] > 0) == (name == "model")
    # a round that names another proposer is a difference
    first = next(r for arm in run.arms for turn in arm.turns for r in turn.rounds if r.drafted)
    first.proposer = 1 - first.proposer
    check_replay.cache_clear()
    assert check_replay(run).differing == 1


def test_texts_are_left_of_all_that_a_reader_meets_and_made_again(recorded, make_recorder, monkeypatch):
    file = recorded.with_name("pieces.json")
    texts, table = read_texts(file), read_table(recorded)
    met = {int(token) for turn in table.turns for token in (*turn.output_ids, *turn.trace.head_ids)}
    assert texts.pieces.keys() == met
    assert texts.questions == {9: ["Why does ice float?"], 2: ["2 + 2 ="], 5: ["A poem.", "Shorter."]}
    before = file.read_bytes()
    file.unlink()
    traced = count_traces(monkeypatch)
    make_recorder(recorded.parents[1]).run()
    assert file.read_bytes() == before and not traced
