"""What a policy may not do fails loudly, in the same words live and in replay; what it may do is the same in both."""

import json

import numpy as np
import pytest
import torch
from replay.recording import facts_of, record, run_live
from scripted import Scripted, ScriptedWatching
from table_model import draw_prompt, table_engine

from gammatune.errors import UserError
from gammatune.policies import Policy
from gammatune.policies.session import PolicyError, PolicySession, show
from gammatune.replay.simulate import prepare, replay

ENGINE = table_engine()
PROMPTS = [draw_prompt(seed) for seed in range(2)]
BUDGET = 20


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    return prepare(record(ENGINE, PROMPTS, BUDGET, 24, tmp_path_factory.mktemp("contract") / "acceptance.parquet"))


def sentences(turns, policy: Policy, kinds: int = 3) -> set[str]:
    """What a live run, a replay with rounds and a replay without (for kinds 3) say of a policy."""
    ways = (
        lambda: run_live(ENGINE, PROMPTS, policy, BUDGET),
        lambda: replay(turns, policy, keep_rounds=True),
        lambda: replay(turns, policy),
    )
    said = set()
    for way in ways[:kinds]:
        with pytest.raises(PolicyError) as refused:
            way()
        said.add(str(refused.value))
    return said


def planning(value) -> Policy:
    policy = Scripted()
    policy.plan = lambda: value
    return policy


class Broken:
    def __index__(self) -> int:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "value",
    [-3, 2.5, None, "3", np.float64(3.0), [3], "x" * 999, torch.tensor(2.5), torch.tensor([1, 2]), Broken()],
    ids=show,
)
def test_a_plan_that_is_no_gamma_is_refused(turns, value):
    (sentence,) = sentences(turns, planning(value))
    assert sentence == f"Policy Scripted: plan() returned {show(value)}, but gamma must be a whole number of 0 or more."
    assert len(sentence) < 200


@pytest.mark.parametrize("value", [2**31, 10**5000], ids=show)
def test_a_plan_beyond_all_tables_is_refused_and_one_beyond_the_budget_is_none(turns, value):
    (sentence,) = sentences(turns, planning(value))
    assert sentence.endswith("but gamma must be a whole number of 0 or more, up to 2147483647.")
    assert facts_of(run_live(ENGINE, PROMPTS, planning(2**31 - 1), BUDGET)) == facts_of(
        replay(turns, planning(2**31 - 1), keep_rounds=True).logs
    )


@pytest.mark.parametrize(
    ("value", "gamma"), [(np.int64(3), 3), (np.int8(0), 0), (True, 1), (False, 0), (torch.tensor(3), 3)], ids=str
)
def test_a_whole_number_of_another_type_is_a_gamma(turns, value, gamma):
    live, replayed = (
        run_live(ENGINE, PROMPTS, planning(value), BUDGET),
        replay(turns, planning(value), keep_rounds=True).logs,
    )
    assert facts_of(live) == facts_of(replayed) == facts_of(run_live(ENGINE, PROMPTS, planning(gamma), BUDGET))
    assert {type(r.planned) for r in [*live[0], *replayed[0]]} == {int}


class Wordless(BaseException):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "error"),
    [*((m, ZeroDivisionError) for m in ("reset", "plan", "state", "keep_drafting", "observe"))]
    + [("plan", SystemExit), ("observe", GeneratorExit), ("plan", RecursionError), ("plan", Wordless)],
)
def test_an_exception_in_a_policy_names_policy_and_call(turns, method, error):
    policy = ScriptedWatching()

    def fail(*arguments):
        raise error("of\nthe policy.")

    setattr(policy, method, fail)
    # a replay that keeps no rounds asks for no state
    assert sentences(turns, policy, kinds=2 if method == "state" else 3) == {
        f"Policy ScriptedWatching: {method}() raised {error.__name__}{'' if error is Wordless else ': of the policy'}."
    }


def test_a_sentence_that_the_policy_wrote_itself_stays_as_it_is(turns):
    policy = Scripted()

    def refuse():
        raise UserError("This rule needs a thermometer: buy one.")

    policy.plan = refuse
    assert sentences(turns, policy) == {"This rule needs a thermometer: buy one."}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"mean": None}, "None for 'mean', but it must be a finite number under a name that is text."),
        ({"mean": [1.0]}, "[1.0] for 'mean', but it must be a finite number under a name that is text."),
        ({"mean": float("nan")}, "nan for 'mean', but it must be a finite number under a name that is text."),
        ({"mean": float("-inf")}, "-inf for 'mean', but it must be a finite number under a name that is text."),
        ({"mean": 10**5000}, "<int> for 'mean', but it must be a finite number under a name that is text."),
        ({3: 1.0}, "1.0 for 3, but it must be a finite number under a name that is text."),
        (None, "None, but it must be a dict of numbers."),
    ],
)
def test_a_state_that_no_log_can_hold_is_refused(turns, state, words):
    policy = Scripted()
    policy.state = lambda: state
    (sentence,) = sentences(turns, policy, kinds=2)
    assert sentence == f"Policy Scripted: state() returned {words}"


def test_numbers_of_numpy_and_torch_are_logged_as_plain_ones(turns):
    class Foreign(Scripted):
        def state(self) -> dict:
            return {"step": np.int64(self.step), "half": np.float32(0.5), "one": torch.tensor(1), "odd": np.bool_(True)}

    for logs in (run_live(ENGINE, PROMPTS, Foreign(), BUDGET), replay(turns, Foreign(), keep_rounds=True).logs):
        assert [type(value) for value in logs[0][0].state.values()] == [int, float, int, bool]
        assert json.loads(json.dumps(logs[0][1].state)) == logs[0][1].state


@pytest.mark.parametrize("value", [None, 1, 0.0, "no", np.array([True, False]), 10**5000], ids=show)
def test_an_answer_that_is_neither_true_nor_false_is_refused(turns, value):
    policy = ScriptedWatching()
    policy.keep_drafting = lambda signals: value
    (sentence,) = sentences(turns, policy)
    assert sentence == f"Policy ScriptedWatching: keep_drafting() returned {show(value)}, but it must be True or False."


@pytest.mark.parametrize("kind", [np.bool_, torch.tensor], ids=["numpy", "torch"])
def test_true_and_false_may_be_numpys_or_torchs(turns, kind):
    def stopping(true, false):
        policy = ScriptedWatching(plans=[6])
        policy.keep_drafting = lambda signals: true if signals.top1 > 0.2 else false
        return facts_of(run_live(ENGINE, PROMPTS, policy, BUDGET)), replay(turns, policy).drafted.tolist()

    assert stopping(kind(True), kind(False)) == stopping(True, False)


@pytest.mark.parametrize("name", ["carry", "watches_draft", "stop_token", "drafts", "observe"])
def test_a_setting_that_raises_is_named(turns, name):
    class Torn(ScriptedWatching):
        pass

    policy = Torn(keeps=[False, True])
    setattr(Torn, name, property(lambda self: 1 / 0, lambda self, value: None))
    with pytest.raises(PolicyError, match=f"^Policy Torn: {name} raised ZeroDivisionError: division by zero.$"):
        run_live(ENGINE, PROMPTS, policy, BUDGET)
    if name != "drafts":  # which no replay asks for
        with pytest.raises(PolicyError, match="^Policy Torn: .* raised ZeroDivisionError: division by zero.$"):
            replay(turns, policy)


def test_a_policy_that_changes_its_round_changes_only_its_own(turns):
    class Changing(Copying):
        def observe(self, finished) -> None:
            super().observe(finished)
            finished.accepted, finished.drafted, finished.stop, finished.context = 99, -1, "never", None

    live, replayed = (
        run_live(ENGINE, PROMPTS, Changing(), BUDGET),
        replay(turns, Changing(), keep_rounds=True).logs,
    )
    assert facts_of(live) == facts_of(replayed) == facts_of(run_live(ENGINE, PROMPTS, Copying(), BUDGET))
    assert replay(turns, Changing()).drafted.tolist() == [r.drafted for rounds in live for r in rounds]


class KeepingRounds(Scripted):
    """Keeps the rounds themselves, which are reused in a replay."""

    def observe(self, finished) -> None:
        super().observe(finished)
        self.history = [*getattr(self, "history", []), finished]


class KeepingTheLastRound(Scripted):
    def observe(self, finished) -> None:
        self.last = finished


class KeepingSignals(ScriptedWatching):
    def keep_drafting(self, signals) -> bool:
        self.last = signals
        return True


class Copying(Scripted):
    """Plans by all rounds so far, of which it copied the numbers."""

    def reset(self) -> None:
        super().reset()
        self.history = []

    def plan(self) -> int:
        return sum(accepted for accepted, _ in self.history[-4:]) % 7 + len(self.history) % 2

    def observe(self, finished) -> None:
        super().observe(finished)
        self.history.append((finished.accepted, finished.drafted))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (KeepingRounds, "observe() kept the Round, which is"),
        (KeepingTheLastRound, "observe() kept the Round, which is"),
        (KeepingSignals, "keep_drafting() kept the Signals, which are"),
    ],
)
def test_a_policy_that_keeps_what_it_was_shown_fails_loudly(turns, kind, words):
    assert sentences(turns, kind()) == {
        f"Policy {kind.__name__}: {words} valid during the call only: copy the numbers that you need."
    }


@pytest.mark.parametrize("carry", ["turn", "never"])
def test_a_policy_that_copies_numbers_replays_identically(turns, carry):
    live = facts_of(run_live(ENGINE, PROMPTS, Copying(carry=carry), BUDGET))
    assert live == facts_of(replay(turns, Copying(carry=carry), keep_rounds=True).logs)
    fast = replay(turns, Copying(carry=carry))
    assert fast.drafted.tolist() == [r[1] for rounds in live for r in rounds]


def test_a_round_shows_a_policy_the_same_wherever_it_runs(turns):
    """No times and no state: they are filled in afterwards, in a live run only or for the log only."""

    class Nosy(Scripted):
        def observe(self, finished) -> None:
            super().observe(finished)
            assert (finished.state, finished.draft_ms, finished.verify_ms, finished.policy_ms) == ({}, 0.0, 0.0, 0.0)

    live, kept = run_live(ENGINE, PROMPTS, Nosy(), BUDGET), replay(turns, Nosy(), keep_rounds=True).logs
    replay(turns, Nosy())
    assert facts_of(live) == facts_of(kept)
    assert all(r.state["step"] >= index for rounds in (*live, *kept) for index, r in enumerate(rounds))
    assert all(r.verify_ms > 0 for rounds in live for r in rounds)


def test_a_state_is_logged_as_it_was(turns):
    """Also where the policy always returns the same dict."""

    class Owning(Scripted):
        def state(self) -> dict:
            self.numbers = getattr(self, "numbers", {})
            self.numbers["step"] = self.step
            return self.numbers

    for logs in (run_live(ENGINE, PROMPTS, Owning(), BUDGET), replay(turns, Owning(), keep_rounds=True).logs):
        steps = [r.state["step"] for r in logs[0]]
        assert steps[0] == 0 and steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("carry", "resets"),
    [("turn", [(1, 0), (1, 1), (2, 0), (2, 1), (2, 0)]), ("question", [(1, 0), (2, 0), (2, 0)]), ("never", [])],
)
def test_a_policy_forgets_at_the_boundary_that_its_carry_names(carry, resets):
    """The same question from its first turn on is a new one: another pass over the questions."""
    found, policy = [], Scripted(carry=carry)
    session = PolicySession(policy)
    for place in [(1, 0), (1, 1), (2, 0), (2, 1), (2, 0)]:
        policy.reset = lambda place=place: found.append(place)
        session.start(*place)
    assert found == resets


def test_an_interrupt_is_no_error_of_the_policy(turns):
    def interrupt():
        raise KeyboardInterrupt

    policy = Scripted()
    policy.plan = interrupt
    for way in (lambda: run_live(ENGINE, PROMPTS, policy, BUDGET), lambda: replay(turns, policy)):
        with pytest.raises(KeyboardInterrupt):
            way()
