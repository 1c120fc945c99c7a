"""Arms next to each other, an error that stays in its arm, answers that do not depend on what came before."""

import json
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import pytest
import torch
from comparing import logged, statuses
from table_model import TableModel

from gammatune.compose import plan_arms
from gammatune.drafters.lookup import Lookup
from gammatune.files import read_json
from gammatune.policies import Policy
from gammatune.policies.session import PolicySession
from gammatune.runs.runner import Progress
from gammatune.runs.session import DEPTH
from gammatune.runs.store import Kept, read_run
from gammatune.studies.replay_check import check_replay


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
    assert done["error"] == "Question 2: RuntimeError: the device is gone"
    if victim != "ar":
        assert [arm.label for arm in read_run(runner.folder.path).arms] == ["ar", "gammatune_plus-3", "hf_heuristic-5"]
        assert read_run(runner.folder.path).left_out == [(victim, "error")]
    on_answer(lambda made, answering: None)
    again = make_runner(tmp_path, "repetitions=2")
    again.run()
    assert set(statuses(again).values()) == {"ok"}
    assert logged(again) == logged(undisturbed)


@dataclass
class Failing(Policy):
    """Raises in one of its methods, or returns nonsense, from the second question on."""

    name: ClassVar[str] = "failing"
    watches_draft: ClassVar[bool] = True

    method: str = "plan"
    carry: str = "never"

    def reset(self) -> None:
        self.rounds, self.seen = 0, 0
        if self.method == "reset" and getattr(self, "used", False):
            raise OSError("the thermometer is gone")

    def fail(self, method: str) -> None:
        if method == self.method and self.rounds > 8:
            raise OSError("the thermometer is gone")

    def plan(self):
        self.used = True
        self.fail("plan")
        return None if self.method == "nonsense" and self.rounds > 8 else 2

    def keep_drafting(self, signals) -> bool:
        self.fail("keep_drafting")
        return True

    def observe(self, finished) -> None:
        self.fail("observe")
        self.rounds += 1

    def state(self) -> dict:
        self.fail("state")
        return {"rounds": self.rounds}

    def restore(self, state: dict) -> None:
        if self.method == "restore":
            raise OSError("the thermometer is gone")
        self.rounds, self.used = state["rounds"], True


SAID = {
    "nonsense": "Policy Failing: plan() returned None, but gamma must be a whole number of 0 or more.",
    "reset": "Policy Failing: reset() raised OSError: the thermometer is gone.",
}


@pytest.mark.parametrize("method", ["plan", "keep_drafting", "observe", "state", "nonsense", "reset"])
def test_a_policy_that_fails_fails_its_own_arm(make_runner, undisturbed, tmp_path, method):
    """The others finish, the report has them, and the same command tries the arm again."""
    for _ in range(2):
        runner = make_runner(tmp_path, "repetitions=2", policies=[Failing(method=method)])
        runner.run()
        assert statuses(runner) == dict.fromkeys(logged(undisturbed), "ok") | {"failing": "error"}
        error = runner.folder.cells[-1].read_done()["error"]
        assert error.endswith(SAID.get(method, f"Policy Failing: {method}() raised OSError: the thermometer is gone."))
    run, others = read_run(runner.folder.path), logged(runner)
    assert run.left_out == [("failing", "error")]
    # a pass over the questions begins with a reset, so that policy answers all questions of the first one
    assert 0 < len(others.pop("failing")) <= (4 if method == "reset" else 3)
    assert others == logged(undisturbed)
    assert check_replay(run).differing == 0


def test_a_policy_that_cannot_go_on_fails_its_own_arm_and_harms_no_finished_one(make_runner, undisturbed, tmp_path):
    first = make_runner(tmp_path, policies=[Failing(method="restore")])
    first.run()
    for _ in range(2):
        make_runner(tmp_path, policies=[Failing(method="restore")]).run()  # nothing is missing, so nothing is restored
    assert set(statuses(first).values()) == {"ok"}
    runner = make_runner(tmp_path, "repetitions=2", policies=[Failing(method="restore")])
    runner.run()
    assert statuses(runner) == dict.fromkeys(logged(undisturbed), "ok") | {"failing": "error"}
    assert (
        runner.folder.cells[-1].read_done()["error"] == "Policy Failing: restore() raised OSError: the thermometer is gone."
    )


def test_a_failed_arm_that_has_come_right_is_finished(make_runner, monkeypatch, tmp_path):
    make_runner(tmp_path / "run", policies=[Failing()]).run()
    monkeypatch.setattr(Failing, "fail", lambda self, method: None)
    again, whole = (make_runner(tmp_path / name, policies=[Failing()]) for name in ("run", "whole"))
    for runner in (again, whole):
        runner.run()
        assert set(statuses(runner).values()) == {"ok"}
    assert logged(again) == logged(whole)


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
    pieces = read_json(undisturbed.folder.path / "pieces.json", "remake it")["pieces"]
    assert set(pieces) >= {str(token) for turns in logged(undisturbed).values() for turn in turns for token in turn[5]}


class Counting(TableModel):
    """Remembers how many tokens it was fed at a time after a prompt, and how many logits were asked for."""

    fed: set

    def forward(self, tokens, keep, positions=None, mask=None):
        self.fed.add((len(tokens), keep))
        return super().forward(tokens, keep)


def warm_and_count(runner) -> tuple[set, set]:
    """What target and draft were fed during the warm-up."""
    for model in (runner.session.engine.target, runner.session.engine.drafter.workplace.model):
        if model is not None:
            model.__class__, model.fed = Counting, set()
    before = [logged(runner), [cell.arm.policy.state() for cell in runner.folder.cells]]
    runner.warm_up([Progress(cell, PolicySession(cell.arm.policy), Kept()) for cell in runner.folder.cells])
    assert before == [logged(runner), [cell.arm.policy.state() for cell in runner.folder.cells]]
    draft = runner.session.engine.drafter.workplace.model
    return runner.session.engine.target.fed, set() if draft is None else draft.fed


@pytest.mark.parametrize(
    ("policies", "longest"),
    [
        (("policy=ar",), 0),
        (("policy=fixed", "policy.fixed.gamma=5"), 5),
        (("policy=fixed", "starts=[1,9]"), 9),
        (("policy=gammatune",), DEPTH),
        (("policy=ucb",), DEPTH),  # its state is no list of attributes
        (("policy=hf_heuristic", "starts=[30]"), 30),
        (("policy=svip",), 40),  # its gamma is a ceiling
    ],
    ids=str,
)
def test_the_warm_up_covers_every_block_length_that_can_occur(make_runner, tmp_path, policies, longest):
    """Also the shorter blocks that the budget cuts, and the draft's feed of two tokens after a full acceptance."""
    runner = make_runner(tmp_path, "decode.max_new_tokens=60", arms=policies)
    target, draft = warm_and_count(runner)
    assert target >= {(n, n) for n in (*range(1, min(longest, DEPTH) + 2), longest + 1)}
    assert max(n for n, keep in target if keep > 1 or n == 1) == longest + 1
    if longest:
        assert draft >= {(1, 1), (2, 1)}


@pytest.mark.parametrize(("answer", "longest"), [(12, 11), (60, 59), (400, 254)])
def test_the_warm_up_tries_no_block_that_cannot_occur(make_runner, tmp_path, answer, longest):
    """An answer of n tokens has room for n - 1 drafted ones, and a context of 512 for no more; 1000 would take a minute."""
    words = (f"decode.max_new_tokens={answer}", "tasks.overlong=skip")
    runner = make_runner(tmp_path, *words, arms=("policy=fixed", "policy.fixed.gamma=1000"))
    target, _ = warm_and_count(runner)
    lengths = {n - 1 for n, keep in target if keep > 1 or n == 1}
    assert lengths == {*range(min(longest, DEPTH) + 1), longest}


def test_the_warm_up_of_a_lookup_verifies_every_length(make_runner, tmp_path):
    runner = make_runner(tmp_path, arms=("policy=fixed", "policy.fixed.gamma=3"), drafter=Lookup())
    target, draft = warm_and_count(runner)
    assert target >= {(n, n) for n in range(1, 5)} and draft == set()
    assert runner.session.engine.drafter == Lookup()


def test_sampled_answers_repeat_with_the_seed_and_are_not_called_exact(make_runner, tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    sampled = [make_runner(tmp_path / name, "decode=sample", f"seed={seed}") for name, seed in seeds.items()]
    for runner in sampled:
        runner.run()
    a, b, c = (logged(runner) for runner in sampled)
    assert a == b and a != c
    assert {cell.read_done()["exact"] for cell in sampled[0].folder.cells} == {None}


def test_threads_are_what_the_config_says(make_runner, tmp_path):
    make_runner(tmp_path, "runtime.threads=2")
    assert torch.get_num_threads() == 2
