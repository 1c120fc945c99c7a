"""Arms next to each other, an error that stays in its arm, answers that do not depend on what came before."""

import json
from itertools import count

import pytest
import torch
from comparing import logged, statuses

from gammatune.compose import plan_arms
from gammatune.runs import runner as runner_module
from gammatune.runs.runner import Runner
from gammatune.runs.store import read_run


def watch_order(runner, on_answer):
    """Labels of the arms, in the order in which they answered."""
    names, order = {id(cell.arm.policy): cell.arm.label for cell in runner.folder.cells}, []
    on_answer(lambda made, policy: order.append(names[id(policy)]))
    return order


def test_arms_take_turns_and_another_one_begins_each_question(make_runner, on_answer, tmp_path):
    runner = make_runner(tmp_path, "repetitions=2")
    labels = [cell.arm.label for cell in runner.folder.cells]
    order = watch_order(runner, on_answer)
    runner.run()
    expected = []
    for repetition in range(2):
        for position, turns in enumerate((1, 1, 2)):
            shift = (position + repetition) % len(labels)
            expected += [label for label in labels[shift:] + labels[:shift] for _ in range(turns)]
    assert order == expected


@pytest.mark.parametrize("policies", ["fixed", "[gammatune,fixed]", "ar", "[]"])
def test_the_target_alone_is_always_an_arm_and_comes_once(make_config, small, policies):
    arms = [arm.label for arm in plan_arms(make_config(*small, f"policy={policies}"))]
    assert arms[0] == "ar" and arms.count("ar") == 1


def test_each_policy_starts_from_each_start(make_config, small):
    arms = plan_arms(make_config(*small, "policy=[fixed,gammatune,hf_confidence]", "starts=[1,24]"))
    assert [arm.label for arm in arms] == [
        "ar",
        "fixed-1",
        "fixed-24",
        "gammatune-1",
        "gammatune-24",
        "hf_confidence-1",
        "hf_confidence-24",
    ]
    assert [arm.gamma for arm in arms] == [None, 1, 24, 1, 24, 1, 24]
    assert arms[4].policy.plan() == 24


@pytest.mark.parametrize(
    ("victim", "failed"), [("fixed-3", {"fixed-3"}), ("ar", {"ar", "fixed-3", "gammatune_plus-3", "hf_heuristic-5"})]
)
def test_an_error_stays_in_its_arm_and_is_tried_again(make_runner, undisturbed, on_answer, tmp_path, victim, failed):
    runner = make_runner(tmp_path, "repetitions=2")
    policy, seen = {cell.arm.label: cell.arm.policy for cell in runner.folder.cells}[victim], count(1)

    def fail(made, answering):
        if answering is policy and next(seen) == 2:
            raise RuntimeError("the device is gone")

    on_answer(fail)
    runner.run()
    assert {label for label, status in statuses(runner).items() if status == "error"} == failed
    assert len(logged(runner)[victim]) == 1
    done = runner.folder.cells[[cell.arm.label for cell in runner.folder.cells].index(victim)].read_done()
    assert done["error"] == "question 2: RuntimeError: the device is gone"
    if victim != "ar":
        assert [arm.label for arm in read_run(runner.folder.path).arms] == ["ar", "gammatune_plus-3", "hf_heuristic-5"]
        assert read_run(runner.folder.path).left_out == [(victim, "error")]
    on_answer(lambda made, answering: None)
    again = make_runner(tmp_path, "repetitions=2")
    again.run()
    assert set(statuses(again).values()) == {"ok"}
    assert logged(again) == logged(undisturbed)


def test_the_order_of_questions_changes_nothing_where_policies_start_afresh(make_runner, question_file, tmp_path):
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(reversed(question_file.read_text().splitlines(keepends=True))))
    seen = []
    for path in (question_file, backwards):
        runner = make_runner(tmp_path, f"tasks.path={path}", "policy.hf_heuristic.carry=turn", "decode.max_new_tokens=30")
        runner.run()
        seen.append({label: sorted(turns) for label, turns in logged(runner).items()})
    assert seen[0] == seen[1]


def test_a_policy_that_never_forgets_starts_where_the_last_question_left_it(undisturbed):
    turns = logged(undisturbed)["hf_heuristic-5"]
    states = [dict(turn[-1][0][-1])["gamma_now"] for turn in turns]
    assert states[0] == states[4] == 5
    after = [turn[-2]["gamma_now"] for turn in turns]
    assert states[1:4] == after[:3] and states[5:] == after[4:7]
    assert set(states) != {5}


def test_a_second_turn_sees_the_arms_own_first_answer(undisturbed):
    for turns in logged(undisturbed).values():
        first, second = turns[2], turns[3]
        assert (first[2], second[2]) == (0, 1)
        assert second[3] > first[3] + len("Shorter.")


def test_the_run_says_what_it_was_and_ran_on(undisturbed):
    run = json.loads((undisturbed.folder.path / "run.json").read_text())
    assert (run["pair"], run["random_weights"], run["tasks"]["name"]) == ("tiny-random", True, "specbench")
    for cell, arm in zip(undisturbed.folder.cells, run["arms"], strict=True):
        provenance = json.loads((cell.folder / "provenance.json").read_text())
        assert provenance["packages"]["torch"] and provenance["device"] and len(provenance["sessions"]) == 1
        assert arm["cell"] == cell.folder.name and arm["settings"] == cell.arm.settings
        done = cell.read_done()
        counted = logged(undisturbed)[cell.arm.label]
        assert (done["turns"], done["tokens"]) == (8, sum(len(turn[5]) for turn in counted))
        assert done["rounds"] == sum(len(turn[-1]) for turn in counted)
        assert (done["status"], done["exact"], done["repetitions"]) == ("ok", True, 2)
        assert done["peak_host_mib"] > 50 and done["peak_device_mib"] is None
    pieces = json.loads((undisturbed.folder.path / "pieces.json").read_text())
    assert set(pieces) == {str(token) for turns in logged(undisturbed).values() for turn in turns for token in turn[5]}


def test_the_warm_up_drafts_every_starting_length(make_config, small, monkeypatch):
    runner, drafted = Runner(make_config(*small, "policy=fixed", "starts=[1,9]")), []
    original = runner_module.generate_speculative

    def watched(*arguments):
        made = original(*arguments)
        drafted.append(max(finished.planned for finished in made.rounds if finished.stop != "budget"))
        return made

    monkeypatch.setattr(runner_module, "generate_speculative", watched)
    runner.warm_up()
    assert drafted == [0, 1, 9]


def test_sampled_answers_repeat_with_the_seed_and_are_not_called_exact(make_runner, tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    sampled = [make_runner(tmp_path / name, "decode=sample", f"seed={seed}") for name, seed in seeds.items()]
    for runner in sampled:
        runner.run()
    a, b, c = (logged(runner) for runner in sampled)
    assert a == b and a != c
    assert {cell.read_done()["exact"] for cell in sampled[0].folder.cells} == {None}


def test_threads_are_what_the_config_says(make_runner, tmp_path):
    before = torch.get_num_threads()
    try:
        make_runner(tmp_path, "runtime.threads=2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
