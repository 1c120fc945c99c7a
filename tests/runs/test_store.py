"""Reading run folders: what comes out of a sound one, and one sentence for each kind of damage."""

import hashlib
import json
from pathlib import Path

import pytest
from report.stored import Recipe, change_done, change_json, store_run

from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.records import Round, TurnLog
from gammatune.runs.monitor import to_line
from gammatune.runs.store import find_runs, is_plain_name, newest_run, read_log, read_run, results_folder
from gammatune.studies.replay_check import check_replay

ROOT = Path(__file__).parents[2]
SMALL = Recipe(arms=("ar", "fixed-2", "gammatune-3"), tasks=("mt_bench", "qa"), questions=2, repetitions=2)


@pytest.fixture
def folder(tmp_path):
    return store_run(tmp_path / "runs" / "demo", SMALL)


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        read_run(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_frames_have_one_row_per_turn_question_and_round(folder):
    run = read_run(folder)
    # mt_bench: 2 questions of 2 turns, qa: 2 of 1; twice; three arms.
    assert len(run.turns) == (4 + 2) * 2 * 3
    assert len(run.questions) == 4 * 2 * 3
    assert len(run.rounds) == sum(len(turn.rounds) for arm in run.arms for turn in arm.turns)
    assert run.rounds["emitted"].sum() == run.turns["tokens"].sum()


def test_repetitions_stay_apart(folder):
    assert sorted(read_run(folder).turns["repetition"].unique()) == [0, 1]


def test_sums_of_a_turn_are_those_of_its_rounds(folder):
    run = read_run(folder)
    turn = run.arm("fixed-2").turns[3]
    row = run.turns[run.turns["label"] == "fixed-2"].iloc[3]
    assert row["accepted"] == sum(r.accepted for r in turn.rounds)
    assert row["draft_ms"] == pytest.approx(sum(r.draft_ms for r in turn.rounds))


@pytest.mark.parametrize(("status", "exact"), [("wrong_output", False), ("error", None)])
def test_cells_that_are_not_ok_are_dropped_and_named(folder, status, exact):
    change_done(folder, "gammatune-3", status=status, exact=exact)
    run = read_run(folder)
    assert set(run.turns["label"]) == set(run.questions["label"]) == set(run.rounds["label"]) == {"ar", "fixed-2"}
    assert run.left_out_sentence() == f"1 arm left out: gammatune-3 ({status})"


def test_several_left_out_arms_are_counted(folder):
    change_done(folder, "gammatune-3", status="wrong_output")
    (folder / "cell-fixed-2" / "done.json").unlink()
    assert read_run(folder).left_out_sentence() == "2 arms left out: fixed-2 (unfinished), gammatune-3 (wrong_output)"


def test_an_arm_with_other_questions_is_left_out(folder, tmp_path):
    other = store_run(tmp_path / "other", Recipe(arms=("ar", "fixed-2"), tasks=("mt_bench",), questions=2))
    for file in (other / "cell-fixed-2").iterdir():
        (folder / "cell-fixed-2" / file.name).write_bytes(file.read_bytes())
    assert read_run(folder).left_out == [("fixed-2", "other questions than ar")]


def test_no_finished_arm_is_refused(folder):
    for done in folder.glob("*/done.json"):
        done.unlink()
    assert "no finished arm" in refusal(folder)


def test_without_the_baseline_there_is_no_speedup(folder):
    change_done(folder, "ar", status="error")
    assert not read_run(folder).has_baseline


@pytest.mark.parametrize("name", ["run.json", "cell-ar/done.json"])
def test_newer_schema_is_refused(folder, name):
    change_json(folder / name, schema=3)
    assert "newer gammatune (schema 3" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_turns_are_refused(folder, keep):
    file = folder / "cell-fixed-2" / "turns.jsonl"
    file.write_bytes(file.read_bytes()[:keep])
    assert "cut short" in refusal(folder)


def test_a_changed_number_is_refused(folder):
    file = folder / "cell-fixed-2" / "turns.jsonl"
    file.write_text(file.read_text().replace('"prompt_tokens":4', '"prompt_tokens":5', 1))
    assert "checksum differs from done.json" in refusal(folder)


def test_rounds_that_do_not_add_up_are_refused(folder):
    file = folder / "cell-fixed-2" / "turns.jsonl"
    file.write_text(file.read_text().replace('"output_ids":[', '"output_ids":[7,', 1))
    change_done(folder, "fixed-2", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert "do not add up" in refusal(folder)


@pytest.mark.parametrize("name", ["run.json", "cell-ar/done.json", "cell-ar/provenance.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_json_is_refused(folder, name, content):
    (folder / name).write_text(content)
    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("key", ["arms", "pair", "tasks", "runtime"])
def test_run_json_without_a_needed_key_is_refused(folder, key):
    change_json(folder / "run.json", **{key: None})
    assert f"damaged ({key} is missing" in refusal(folder)


BAD_ARMS = {
    "an arm without cell, gamma": {"label": "ar", "policy": "ar"},
    "an arm that is none": 7,
    "the label of an arm is no plain name": {"label": "../../evil"},
    "the cell of an arm is no plain name": {"cell": "/etc"},
    "the policy of ar is none": {"settings": [1]},
    "two arms have one label": {"label": "fixed-2"},
}


@pytest.mark.parametrize("fault", BAD_ARMS)
def test_an_arm_that_no_run_wrote_is_refused(folder, fault):
    arms = json.loads((folder / "run.json").read_text())["arms"]
    whole = fault.startswith("an arm")
    arms[0] = BAD_ARMS[fault] if whole else arms[0] | BAD_ARMS[fault]
    change_json(folder / "run.json", arms=arms)
    assert f"run.json is damaged ({fault}): give the folder of a run" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "a\x1b[2J", "a\nb", "x" * 300, 5, "\ud800"]
)
def test_what_is_no_name_of_a_file_in_the_folder_is_no_plain_name(name):
    assert is_plain_name("gammatune-3") and is_plain_name("é 3") and not is_plain_name(name)


def test_names_and_texts_of_a_stranger_come_out_harmless(folder):
    change_json(folder / "run.json", pair="mine\x1b[2J\n")
    change_json(folder / "cell-ar" / "provenance.json", device="CPU\x07")
    run = read_run(folder)
    assert (run.facts["pair"], run.arm("ar").provenance["device"]) == (r"mine\x1b[2J\n", r"CPU\x07")


def test_a_changed_digit_of_any_json_file_is_found_out(folder):
    """pieces.json when it is first needed; config.json only by a run that goes on."""
    for file in (*folder.glob("*.json"), *(folder / "cell-ar" / name for name in ("done.json", "provenance.json"))):
        whole = file.read_text()
        file.write_text(whole.replace(": 2", ": 1", 1))
        with pytest.raises(UserError, match=f"{file.name} is damaged or was changed"):
            read_run(folder).pieces  # noqa: B018
        file.write_text(whole)


def test_folders_of_the_first_schema_have_no_checksums_and_are_read(folder):
    for file in (*folder.glob("*.json"), *folder.glob("cell-*/*.json")):
        content = {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}
        file.write_text(json.dumps(content["pieces"] if "pieces" in content else content | {"schema": 1}))
    run = read_run(folder)
    assert len(run.arms) == 3 and run.pieces[1].startswith(" ")


@pytest.mark.parametrize("pieces", [[], {"x": "a"}, {"1": 7}, {"-1": "a"}, {"9" * 99: "a"}])
def test_pieces_that_are_none_are_refused(folder, pieces):
    write_json(folder / "pieces.json", {"pieces": pieces})
    with pytest.raises(UserError, match="pieces.json is damaged .*: run the same command again"):
        read_run(folder).pieces  # noqa: B018


BAD_DONE = {"status": "fine", "exact": 1, "near_ties": -1}


@pytest.mark.parametrize("key", BAD_DONE)
def test_a_cell_that_ended_in_no_known_way_is_refused(folder, key):
    change_done(folder, "ar", **{key: BAD_DONE[key]})
    assert "done.json is damaged" in refusal(folder)


@pytest.mark.parametrize("fields", [{"device": None}, {"time": "yesterday"}, {"sessions": "two"}, {"git": 5}])
def test_an_origin_that_is_none_is_refused(folder, fields):
    change_json(folder / "cell-ar" / "provenance.json", **fields)
    assert f"delete the folder {folder / 'cell-ar'} and run the same command again" in refusal(folder)


def test_machine_samples_that_cannot_be_are_left_out(folder):
    good = to_line({"time": 1.0, "load": 0.5, "cpu_mhz": None})
    bad = [
        good[: len(good) // 2] + good,
        good.replace("0.5", "7.5"),
        '{"time": 1.0}\n',
        "[1]\n",
        "\0\xff\n",
        "[" * 2000 + "\n",
    ]
    bad += [to_line({"time": 1.0, "load": load}) for load in (-1.0, float("nan"), float("inf"), "high", None, True)]
    old = '{"time": 2.0, "load": 0.25, "cpu_mhz": 2600.0}\n'
    (folder / "machine.jsonl").write_bytes("".join([*bad, good, old, good[:-9]]).encode("latin-1"))
    assert read_run(folder).machine["load"].tolist() == [0.5, 0.25]
    (folder / "machine.jsonl").unlink()
    (folder / "machine.jsonl").mkdir()
    assert read_run(folder).machine.empty


def test_missing_turns_are_refused(folder):
    (folder / "cell-ar" / "turns.jsonl").unlink()
    assert "cut short" in refusal(folder)


def test_missing_pieces_are_refused_when_they_are_needed(folder):
    (folder / "pieces.json").unlink()
    run = read_run(folder)
    with pytest.raises(UserError, match="pieces.json cannot be read"):
        run.pieces.get(0)


def test_no_run_says_which_command_makes_one(tmp_path):
    assert "python run.py" in refusal(tmp_path / "nothing")
    with pytest.raises(UserError, match="python run.py"):
        newest_run(tmp_path)


def test_the_folder_of_runs_points_to_a_run_inside(folder):
    assert str(folder) in refusal(folder.parent)


def test_newest_run_prefers_own_finished_runs(folder, tmp_path):
    reference = store_run(tmp_path / "reference" / "shipped", SMALL)
    assert newest_run(tmp_path) == folder
    for done in folder.glob("*/done.json"):
        done.unlink()
    assert newest_run(tmp_path) == reference


def test_results_folder_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("GAMMATUNE_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert results_folder() == tmp_path / "results"


def test_two_runs_are_two_folders(folder, tmp_path):
    second = store_run(tmp_path / "runs" / "again", SMALL)
    assert sorted(find_runs(tmp_path / "runs")) == sorted([folder, second])


def test_a_turn_log_comes_back_as_it_was():
    rounds = [
        Round(3, 2, 1, 2, 3, "policy", 10, 1.5, 20.25, 0.125, {"mean": 2.5}),
        Round(4, 0, 0, 1, 0, "budget", 12, nodes=7, row=1, proposer=1),
    ]
    turn = TurnLog(5, "writing", "mt_bench", 1, 10, [4, 5, 6], "length", 1.0, 99.5, rounds, 2, {"mean": 3.0})
    assert TurnLog.from_json(turn.to_json()) == turn


def test_a_turn_log_of_the_first_schema_is_read():
    """Its rounds name the draft's forwards otherwise, and know of no trees and no batches."""
    turn = TurnLog(5, "qa", "qa", 0, 10, [4, 6], "eos", 1.0, 2.0, [Round(3, 2, 1, 2, 3, "policy", 10, state={"mean": 2.5})])
    old = json.loads(turn.to_json())
    old["schema"] = 1
    old["rounds"]["draft_forwards"] = old["rounds"].pop("forwards")
    del old["rounds"]["nodes"], old["rounds"]["row"], old["rounds"]["proposer"]
    assert TurnLog.from_json(json.dumps(old)) == turn
    assert (turn.rounds[0].nodes, turn.rounds[0].row) == (2, 0)


def test_a_log_without_proposers_is_one_drafters():
    turn = TurnLog(5, "qa", "qa", 0, 10, [4, 6], "eos", 1.0, 2.0, [Round(3, 2, 1, 2, 3, "policy", 10)])
    old = json.loads(turn.to_json())
    del old["rounds"]["proposer"]
    assert TurnLog.from_json(json.dumps(old)) == turn and turn.rounds[0].proposer == 0


SOUND = TurnLog(
    5,
    "qa",
    "qa",
    0,
    10,
    [4, 6, 7],
    "eos",
    1.0,
    2.0,
    [Round(5, 3, 1, 2, 4, "policy", 10), Round(0, 0, 0, 1, 0, "length", 12)],
)
BAD_FIELDS = [{"schema": 3}, {"rounds": {}}, {"schema": None}, {"words": 7}, {"schema": "2"}, {"schema": []}]
BAD_FIELDS += [
    {"prompt_tokens": -1},
    {"turn": True},
    {"output_ids": [4, 6, -7]},
    {"output_ids": [4, 6]},
    {"output_ids": "467"},
]
BAD_FIELDS += [{"finish": "maybe"}, {"task": 3}, {"question_id": 2.5}, {"repetition": 2**40}]
BAD_FIELDS += [
    {"wall_ms": 0.0},
    {"wall_ms": float("nan")},
    {"prefill_ms": -1.0},
    {"policy_after": [1]},
    {"policy_after": {"x": "y"}},
]
BAD_ROUNDS = {
    "accepted": [4, -1, True, 10**6],  # more than drafted made a report count for ever
    "drafted": [6, 0, 2.5],
    "planned": [2, "5", None],
    "emitted": [3, 0, 10**6],
    "forwards": [-1, 2**31],
    "context": [9, -1],
    "nodes": [2],
    "row": [-1],
    "proposer": [-1, "model"],
    "stop": ["", "tired", None, ["eos"]],
    "state": [None, [], {"x": "y"}],
    "draft_ms": [-5.0, float("inf")],
    "verify_ms": [-0.1, "2"],
    "policy_ms": [float("nan"), True],
}


@pytest.mark.parametrize("column", BAD_ROUNDS)
def test_a_round_that_no_loop_logged_is_refused(column):
    for value in BAD_ROUNDS[column]:
        line = json.loads(SOUND.to_json())
        line["rounds"][column][0] = value
        with pytest.raises(UserError, match=r"^the turn log is damaged \(.*\): write it again\.$"):
            TurnLog.from_json(json.dumps(line))


def test_a_bad_line_in_an_unfinished_log_says_how_to_go_on(folder):
    file = folder / "cell-ar" / "turns.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], lines[3].replace(b":", b"", 1), *lines[4:]]))
    with pytest.raises(
        UserError, match=r"turns.jsonl line 4 is damaged .*: run the same command again, which goes on from the lines"
    ):
        list(read_log(file))
    file.write_bytes(b"".join(lines[:3]))
    assert len(list(read_log(file))) == 3


@pytest.mark.parametrize("change", BAD_FIELDS)
def test_a_line_that_cannot_be_read_is_named(change):
    line = json.loads(SOUND.to_json()) | change
    with pytest.raises(UserError, match=r"^run/turns.jsonl line 4 (was written by a newer gammatune|is damaged)"):
        TurnLog.from_json(json.dumps(line), "run/turns.jsonl line 4")


SHIPPED_RUNS = {"smollm2-draft-135m-demo-2828959329": 1, "qwen2.5-coder-0.5b-1.5b-demo-3703d56818": 2}  # schema of the logs


@pytest.mark.parametrize("name", SHIPPED_RUNS)
def test_a_shipped_run_replays_from_its_table(name):
    folder = ROOT / "results" / "reference" / name
    logs = [json.loads(path.read_text().splitlines()[0]) for path in folder.glob("*/turns.jsonl")]
    assert {log["schema"] for log in logs} == {SHIPPED_RUNS[name]}
    run = read_run(folder)
    check = check_replay(run)
    assert run.has_baseline and not run.left_out
    assert (check.arms, check.differing, check.other_text, check.unchecked) == (len(run.arms) - 1, 0, 0, [])


def test_every_shipped_run_is_among_them():
    assert {path.parent.name for path in (ROOT / "results" / "reference").glob("*/run.json")} == set(SHIPPED_RUNS)
