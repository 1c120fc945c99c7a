"""The bandit over lengths against hand-computed rounds."""

from math import log, sqrt

import pytest
from made import finished, play

from gammatune.policies import POLICIES


def test_each_arm_is_played_once_first():
    assert play(POLICIES["ucb"](), 5, 1) == [0, 1, 2, 3, 4]
    assert play(POLICIES["ucb_released"](), 7, 1) == [1, 2, 3, 4, 1, 2, 3]


def test_rewards_are_modelled_throughput_over_the_best_possible():
    """c = 10: best is 5 / 1.4; one accepted of d: 1 for d = 0, then 2 / (1 + d / 10)."""
    policy = POLICIES["ucb"]()
    play(policy, 5, 1)
    expected = [1.0, 2 / 1.1, 2 / 1.2, 2 / 1.3, 2 / 1.4]
    assert policy.means == pytest.approx([value / (5 / 1.4) for value in expected])
    assert policy.pulls == [1] * 5


def test_the_sixth_round_takes_the_best_mean_since_all_radii_are_equal_and_the_seventh_does_not():
    """After six rounds t = 7: arm 1 has n = 2 and mean 0.509, the others n = 1, of which arm 2 has the best mean, 0.467."""
    policy = POLICIES["ucb"]()
    assert play(policy, 7, 1)[5:] == [1, 2]


def test_radius_is_the_papers_over_a_range_of_one():
    policy = POLICIES["ucb"]()
    play(policy, 6, 1)
    scores = policy.add_radius(7)
    for place, n in ((0, 1), (1, 2)):
        radius = 0.5 * sqrt((1 + n) / n**2 * (1 + 2 * log(5 * 7**2 * sqrt(1 + n) / 0.1)))
        assert scores[place] == pytest.approx(policy.means[place] + radius)


@pytest.mark.parametrize("matches, cost_ratio, best", [(0, 10.0, 1), (1, 10.0, 1), (3, 10.0, 3), (4, 10.0, 4), (4, 0.5, 1)])
def test_the_released_choice_is_the_best_mean(matches, cost_ratio, best):
    """Where a draft forward costs two of the target's, (d + 1) / (1 + 2 d) is best for the shortest arm."""
    assert set(play(POLICIES["ucb_released"](cost_ratio=cost_ratio), 60, matches)[7:]) == {best}


def test_counting_tokens_picks_the_longest_and_throughput_does_not():
    """Two of any block accepted: 2, 3 and 4 emit the same, and 2 costs least.

    One in nine blocks accepted in full tips the count of tokens, not the throughput.
    """
    chosen = {}
    for reward in ("tokens", "throughput"):
        policy = POLICIES["ucb_released"](reward=reward)
        for number in range(200):
            planned = policy.plan()
            policy.observe(finished(planned, planned if number % 9 == 3 else min(2, planned)))
        chosen[reward] = max(zip(policy.pulls, policy.arms, strict=True))[1]
    assert chosen == {"tokens": 4, "throughput": 2}


def test_the_papers_rule_comes_to_play_the_best_arm_most():
    plans = play(POLICIES["ucb"](), 3000, 2)
    assert max(set(plans), key=plans.count) == 2


def test_a_state_is_flat_numbers_by_arm():
    policy = POLICIES["ucb"](arms=[0, 3], reward="tokens")
    play(policy, 3, 2)
    assert policy.state() == {"pulls_0": 1, "pulls_3": 2, "mean_0": 0.0, "mean_3": pytest.approx(2 / 3)}
