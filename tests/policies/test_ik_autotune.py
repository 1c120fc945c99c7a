"""ik_llama.cpp's autotune against hand-computed rounds, its draws and its starting again."""

import pytest
from made import finished, play, signal

from gammatune.policies import POLICIES


def test_lengths_and_thresholds_are_those_of_the_source_and_the_users_own():
    policy = POLICIES["ik_autotune"]()
    assert policy.lengths.values == list(range(1, 17))
    assert policy.thresholds.values == pytest.approx([0.0, *(0.095 * k for k in range(1, 8)), 0.75, 0.76, 0.855, 0.95])
    assert len(POLICIES["ik_autotune"](p_min=0.0).thresholds.values) == 11
    assert POLICIES["ik_autotune"](gamma=20).lengths.values[-1] == POLICIES["ik_autotune"](gamma=20).longest == 20


def test_before_anything_is_known_the_smallest_of_each_is_the_best():
    policy = POLICIES["ik_autotune"](epsilon=0.0)
    assert policy.plan() == 1 and policy.threshold_now == 0.0
    assert policy.keep_drafting(signal(0.0))


def test_a_mean_reward_is_accepted_tokens_and_one_more_over_the_price():
    """c = 10, one drafted token: 2 / 11, then 1 / 11."""
    policy = POLICIES["ik_autotune"](epsilon=0.0)
    for accepted, mean in ((1, 2 / 11), (0, 1.5 / 11)):
        policy.observe(finished(policy.plan(), accepted))
        assert policy.lengths.means[0] == policy.thresholds.means[0] == pytest.approx(mean)
    assert policy.lengths.plays[0] == policy.thresholds.plays[0] == 2


def test_drafting_ends_under_the_threshold_that_was_drawn():
    policy = POLICIES["ik_autotune"]()
    policy.threshold_now = 0.57
    assert policy.keep_drafting(signal(0.57)) and not policy.keep_drafting(signal(0.5699))


def test_fifteen_in_a_hundred_draws_try_any_value():
    """A sixteenth of them the best one again."""
    policy = POLICIES["ik_autotune"]()
    policy.lengths.best = 4
    tried = [policy.plan() for _ in range(20_000)]
    assert sum(length != 5 for length in tried) / len(tried) == pytest.approx(0.15 * 15 / 16, abs=0.01)
    assert {tried.count(length) // 100 for length in range(1, 17) if length != 5} <= {1, 2}


def test_the_generator_is_minstd_and_its_seed_a_setting():
    """The C++ standard gives the ten thousandth number of minstd_rand from seed 1."""
    policy = POLICIES["ik_autotune"]()
    assert policy.generator == pow(48271, 3, 2**31 - 1)
    for _ in range(10_000 - 3):
        policy.draw()
    assert policy.generator == 399268537
    assert len({tuple(play(POLICIES["ik_autotune"](seed=seed), 60, 3)) for seed in range(5)}) == 5


def test_it_comes_to_play_the_best_length_most():
    plans = play(POLICIES["ik_autotune"](), 2000, 5)[1000:]
    assert max(set(plans), key=plans.count) == 5


def fast_then_slow(policy, slow: int) -> None:
    """So many rounds that earn a fifth of those before."""
    policy.lengths.best = 9
    for _ in range(200):
        policy.observe(finished(policy.plan(), policy.lengths.values[policy.lengths.now]))
    for _ in range(slow):
        policy.observe(finished(policy.plan(), 0))


def test_thirty_low_rounds_in_a_row_start_it_again_from_the_users_values():
    policy = POLICIES["ik_autotune"](epsilon=0.0, gamma=7, p_min=0.5)
    fast_then_slow(policy, 29)
    assert (policy.low, policy.grace) == (29, 0) and any(policy.lengths.plays)
    policy.observe(finished(policy.plan(), 0))
    assert (policy.low, policy.grace, policy.mean) == (0, 50, 0.0)
    assert not any(policy.lengths.plays + policy.thresholds.plays)
    assert policy.plan() == 7 and policy.threshold_now == 0.5


def test_one_round_that_is_not_low_ends_the_count():
    policy = POLICIES["ik_autotune"](epsilon=0.0)
    fast_then_slow(policy, 29)
    policy.observe(finished(policy.plan(), policy.lengths.values[policy.lengths.now]))
    assert policy.low == 0 and any(policy.lengths.plays)


def test_fifty_rounds_of_grace_are_never_low():
    policy = POLICIES["ik_autotune"](epsilon=0.0)
    policy.start_again()
    policy.observe(finished(10, 10))
    for _ in range(49):
        policy.observe(finished(10, 0))
    assert (policy.grace, policy.low) == (0, 0)
    policy.mean = 1.0
    policy.observe(finished(10, 0))
    assert policy.low == 1


def test_the_running_mean_moves_by_a_twentieth():
    policy = POLICIES["ik_autotune"](epsilon=0.0)
    policy.observe(finished(1, 1))
    policy.observe(finished(1, 0))
    assert policy.mean == pytest.approx(0.05 * 1 / 11 + 0.95 * 2 / 11)


def test_a_round_without_a_block_teaches_nothing():
    policy = POLICIES["ik_autotune"]()
    policy.plan()
    before = policy.state()
    policy.observe(finished(policy.lengths.values[policy.lengths.now], 0, drafted=0))
    assert policy.state() == before


def test_a_restored_state_draws_on():
    policy, fresh = POLICIES["ik_autotune"](), POLICIES["ik_autotune"]()
    play(policy, 40, 3)
    fresh.restore(policy.state())
    assert play(fresh, 200, 3) == play(policy, 200, 3)
