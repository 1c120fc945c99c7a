"""SVIP and AdaEDL against hand-computed blocks and rounds."""

import math

import pytest
from made import draft_block, finished, signal

from gammatune.policies import POLICIES


def entropies(*values: float) -> list:
    return [signal(entropy=value, index=index) for index, value in enumerate(values)]


def test_svip_verifies_the_token_over_its_bound():
    """sqrt(0.15 * 0.6) = 0.3 is not over 0.3; sqrt(0.15 * 0.7) = 0.324 is."""
    assert draft_block(POLICIES["svip"](), entropies(0.0, 0.6, 0.5, 0.7, 0.1)) == 4
    assert draft_block(POLICIES["svip"](stop_token="exclude"), entropies(0.0, 0.6, 0.5, 0.7, 0.1)) == 3
    assert draft_block(POLICIES["svip"](), entropies(*[0.1] * 50)) == 40


def test_the_papers_form_is_stricter():
    """sqrt(0.09) = 0.3 is not over 0.3; sqrt(0.1) = 0.316 is."""
    assert draft_block(POLICIES["svip_paper"](), entropies(0.09, 0.1, 0.0)) == 2
    assert draft_block(POLICIES["svip"](), entropies(0.09, 0.1, 0.0)) == 3


def test_adaedl_drops_the_token_over_its_bound_but_never_the_first():
    """1 - sqrt(0.2 * 1.8) = 0.4 is not under 0.4; 1 - sqrt(0.2 * 1.9) = 0.384 is."""
    policy = POLICIES["adaedl"]()
    assert draft_block(policy, entropies(9.9, 1.7, 1.9, 0.1)) == 2
    assert draft_block(policy, entropies(9.9, 9.9)) == 1
    assert draft_block(policy, entropies(*[1.7] * 9)) == 7
    assert draft_block(POLICIES["adaedl"](stop_token="include"), entropies(9.9, 1.7, 1.9, 0.1)) == 3


def test_adaedl_worked_rounds():
    """Rate from 0.9: 2 of 4 gives 0.7, lambda up 0.001; 3 of 3 gives 0.85, up; 4 of 4 0.925, down; 7 of 7 0.9625, stays."""
    policy = POLICIES["adaedl"]()
    seen = []
    for drafted, accepted in ((4, 2), (3, 3), (4, 4), (7, 7)):
        policy.observe(finished(7, accepted, drafted))
        seen.append((policy.rate, policy.threshold_now))
    rates, thresholds = zip(*seen, strict=True)
    assert rates == pytest.approx((0.7, 0.85, 0.925, 0.9625))
    assert thresholds == pytest.approx((0.401, 0.402, 0.401, 0.401))


def test_adaedl_learns_nothing_where_nothing_was_drafted():
    policy = POLICIES["adaedl"]()
    before = policy.state()
    policy.observe(finished(7, 0, 0, stop="budget"))
    assert policy.state() == before


def test_adaedl_moves_by_a_thousandth_a_round():
    policy = POLICIES["adaedl"]()
    for _ in range(100):
        policy.observe(finished(7, 0))
    assert math.isclose(policy.threshold_now, 0.4 + 100 * 0.001)
