"""SGLang's walk against hand-computed rounds."""

import pytest
from made import finished

from gammatune.policies import POLICIES


def play(policy, accepted: list[int]) -> list[int]:
    """Plans of each round, and of the round after them."""
    plans = []
    for number in accepted:
        plans.append(policy.plan())
        policy.observe(finished(policy.plan(), min(number, policy.plan())))
    return [*plans, policy.plan()]


def test_first_decision_comes_after_fifteen_rounds_and_can_climb_several_entries():
    """Mean from 2 with A = 3: 3 - 0.8^15 = 2.965 > 2.5, so 3 -> 5; 2.965 is not over 4.5. Then A = 5 for five rounds:
    5 - 2.035 * 0.8^5 = 4.333, no; five more: 5 - 2.035 * 0.8^10 = 4.781 > 4.5, so 5 -> 7.
    """
    plans = play(POLICIES["sglang_walk"](), [9] * 25)
    assert plans == [3] * 15 + [5] * 10 + [7]


def test_down_needs_a_quarter_more_than_half():
    """From step 3, mean 2, A = 0: 2 * 0.8^15 = 0.070 <= 1 - 0.5 - 0.25, so down to 1, where nothing is below."""
    policy = POLICIES["sglang_walk"]()
    assert play(policy, [0] * 15)[-1] == 1
    assert policy.mean == pytest.approx(2 * 0.8**15)
    assert play(policy, [0] * 30)[-1] == 1


def test_falls_several_entries_at_once():
    """From 7, mean 6: 6 * 0.8^15 = 0.211 is under 4.25, 2.25 and 0.25."""
    assert play(POLICIES["sglang_walk"](gamma=7), [0] * 15)[-2:] == [7, 1]


def test_stays_between_its_two_bounds():
    """Step 3 with mean 2 and A = 2 stays: over 0.25, not over 2.5."""
    assert play(POLICIES["sglang_walk"](), [2] * 40) == [3] * 41


def test_step_zero_learns_nothing_and_is_left_at_the_next_decision():
    """Step 1, mean 0: 0 <= 0.5 - 0.25, so off; five rounds later the smallest positive step is tried with the mean kept."""
    policy = POLICIES["sglang_walk"](gamma=1, steps=[3, 0, 1])
    assert play(policy, [0] * 25) == [1] * 15 + [0] * 5 + [1] * 5 + [0]
    assert policy.mean == 0.0


def test_a_walk_that_begins_at_zero_has_a_neutral_mean_when_it_first_drafts():
    policy = POLICIES["sglang_walk"](gamma=0, steps=[0, 3])
    assert play(policy, [0] * 15) == [0] * 15 + [3]
    assert policy.mean == 2.0
    assert play(POLICIES["sglang_walk"](gamma=0, steps=[0]), [0] * 20) == [0] * 21


def test_a_start_off_the_list_is_the_middle_entry():
    assert [POLICIES["sglang_walk"](gamma=gamma).plan() for gamma in (1, 2, 5, 24)] == [1, 5, 5, 5]


def test_a_server_never_forgets():
    assert POLICIES["sglang_walk"]().carry == "never"
