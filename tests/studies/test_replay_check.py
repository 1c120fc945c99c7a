"""Every logged round is the one that replay predicts; one that is not, or is missing, is counted and named."""

import hashlib
import json
import shutil

import pytest
from report.stored import change_json

from gammatune.runs.runner import Runner
from gammatune.runs.store import read_run
from gammatune.studies.replay_check import STATE_TOLERANCE, check_replay, replay_sentence

LIVE = ("ar", "fixed", "gammatune", "gammatune_plus", "hf_heuristic", "svip")


@pytest.fixture(scope="module")
def finished(make_config, small, tmp_path_factory):
    """A run on the tiny pair, two passes; two of its policies carry their state over questions."""
    carried = ["policy.hf_heuristic.carry=never", "policy.gammatune.carry=question"]
    results = tmp_path_factory.mktemp("many")
    words = [f"policy=[{','.join(LIVE)}]", *carried, "repetitions=2", "decode.max_new_tokens=20", f"results={results}"]
    runner = Runner(make_config(*small, *words))
    runner.run()
    return runner.folder.path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def tamper(run, label: str, change) -> None:
    """Apply change(turns, a list of dicts) to an arm's log, and vouch for it as the run itself would."""
    cell = next(folder for folder in run.iterdir() if folder.is_dir() and folder.name.rpartition("-")[0] == label)
    log, done = cell / "turns.jsonl", cell / "done.json"
    turns = [json.loads(line) for line in log.read_text().splitlines()]
    change(turns)
    log.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    change_json(done, sha256=hashlib.sha256(log.read_bytes()).hexdigest())


def test_every_arm_ran_as_its_replay_predicts(finished):
    run = read_run(finished)
    check = check_replay(run)
    assert check.arms == len(LIVE) - 1 and not run.left_out
    assert check.rounds == sum(len(t.rounds) for arm in run.arms if arm.policy != "ar" for t in arm.turns)
    assert (check.differing, check.other_text, check.first, check.unchecked) == (0, 0, "", [])
    assert replay_sentence(run) == (
        f"Replay: all {check.rounds:,} rounds of {check.arms} drafting arms are identical to their replay from the "
        "acceptance table."
    )


@pytest.mark.parametrize(("column", "value"), [("planned", 77), ("drafted", 4), ("stop", "budget")])
def test_one_changed_number_is_counted_and_named(copy, column, value):
    def change(turns):
        turns[1]["rounds"][column][1] = value

    tamper(copy, "fixed-5", change)
    run = read_run(copy)
    check = check_replay(run)
    assert (check.differing, check.other_text) == (1, 0)
    assert check.first == "fixed-5, question 2, turn 0, round 1"
    assert replay_sentence(run) == (
        f"Replay: 1 of {check.rounds:,} rounds of {check.arms} drafting arms differ from their replay, first {check.first}."
    )


def join_last_rounds(turn):
    """The same text in one round fewer."""
    columns = turn["rounds"]
    last = columns["emitted"].pop()
    columns["emitted"][-1] += last
    for name, values in columns.items():
        if name != "emitted":
            values.pop()
    for name in ("accepted", "drafted", "nodes", "planned"):
        columns[name][-1] = columns["emitted"][-1] - 1


def split_last_round(turn):
    """The same text in one round more."""
    columns = turn["rounds"]
    for values in columns.values():
        values.append(values[-1])
    columns["emitted"][-2:] = [columns["emitted"][-1] - 1, 1]
    columns["accepted"][-2:] = [columns["emitted"][-2] - 1, 0]
    columns["context"][-1] += columns["emitted"][-2]


@pytest.mark.parametrize("change", [join_last_rounds, split_last_round])
def test_rounds_that_only_one_side_has_differ(finished, copy, change):
    """A longer or shorter log: its last round differs, and the last one of the longer side has no partner."""

    def change_one(turns):
        change(next(turn for turn in turns if turn["rounds"]["emitted"][-1] > 1))

    tamper(copy, "fixed-5", change_one)
    check, sound = check_replay(read_run(copy)), check_replay(read_run(finished))
    assert check.differing == 2
    assert check.rounds == sound.rounds + (change is split_last_round)
    assert check.first.startswith("fixed-5, question ")


def test_arms_that_cannot_be_replayed_are_named_with_the_reason(copy):
    arms = json.loads((copy / "run.json").read_text())["arms"]
    for arm in arms:
        if arm["policy"] == "svip":
            arm["policy"] = "my_module.Halving"
        if arm["policy"] == "hf_heuristic":
            arm["settings"]["speed"] = 3
    change_json(copy / "run.json", arms=arms)
    check = check_replay(read_run(copy))
    assert check.arms == len(LIVE) - 3 and check.differing == 0
    assert [each.split(" ")[0] for each in check.unchecked] == ["hf_heuristic-5", "svip-40"]
    assert check.sentence().endswith(
        " Not checked: hf_heuristic-5 (policy hf_heuristic is not known here, or not with these settings); "
        "svip-40 (policy my_module.Halving is not known here, or not with these settings)."
    )


@pytest.mark.parametrize(("step", "differing"), [(0.5 * STATE_TOLERANCE, 0), (2 * STATE_TOLERANCE, 1)])
def test_a_states_last_digit_may_differ_and_no_more(copy, step, differing):
    def change(turns):
        turns[0]["rounds"]["state"][0]["mean"] += step

    tamper(copy, "gammatune_plus-3", change)
    assert check_replay(read_run(copy)).differing == differing


def test_a_state_of_other_numbers_differs(copy):
    def change(turns):
        turns[0]["rounds"]["state"][0] = {"gamma_now": 3}
        turns[0]["rounds"]["state"][1]["median"] = turns[0]["rounds"]["state"][1].pop("mean")

    tamper(copy, "gammatune-3", change)
    assert check_replay(read_run(copy)).differing == 2


def test_differences_of_several_arms_add_up_and_the_first_is_named(copy):
    def change(turns):
        turns[3]["rounds"]["planned"][0] += 40
        turns[7]["rounds"]["planned"][0] += 40

    for label in ("svip-40", "gammatune-3"):
        tamper(copy, label, change)
    check = check_replay(read_run(copy))
    assert check.differing == 4
    assert check.first in ("svip-40, question 5, turn 1, round 0", "gammatune-3, question 5, turn 1, round 0")


@pytest.mark.parametrize(
    ("label", "left_out"),
    [
        ("fixed-5", 1),  # forgets at each turn: other questions can still be compared
        ("gammatune-3", 3),  # the rest of that pass: its state may be another one
        ("hf_heuristic-5", 3),
    ],
)
def test_a_turn_with_another_text_is_left_out_with_what_it_touches(copy, label, left_out):
    """A near-tie in the second of four turns of the first pass; the second pass starts afresh."""

    def change(turns):
        turns[1]["output_ids"][-1] += 1

    before = check_replay(read_run(copy)).rounds
    tamper(copy, label, change)
    check = check_replay(read_run(copy))
    assert (check.other_text, check.differing) == (left_out, 0)
    assert check.rounds < before
    assert check.sentence().endswith(f" {left_out} turns with a near-tie were left out.")


def test_a_turn_after_another_text_answered_another_prompt(copy):
    """Whatever its own numbers say."""

    def change(turns):
        turns[2]["output_ids"][-1] += 1
        turns[3]["rounds"]["planned"][0] += 40

    tamper(copy, "fixed-5", change)
    check = check_replay(read_run(copy))
    assert (check.other_text, check.differing) == (2, 0)


def test_without_a_table_there_is_nothing_to_check(copy):
    (copy / "acceptance.parquet").unlink()
    run = read_run(copy)
    assert check_replay(run) is None
    assert replay_sentence(run).startswith("Replay: not checked, since this run has no acceptance table")
