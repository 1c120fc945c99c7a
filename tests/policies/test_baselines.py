"""The tuned fixed gamma and the oracle."""

import pytest

from gammatune.errors import UserError
from gammatune.policies import POLICIES


def test_tuned_fixed_is_a_fixed_gamma_under_its_own_name():
    assert (POLICIES["tuned_fixed"]().plan(), POLICIES["tuned_fixed"](gamma=6).plan()) == (1, 6)


def test_the_oracle_plans_what_it_was_told_and_nothing_else():
    policy = POLICIES["oracle"]()
    for matches in (3, 0, 24):
        policy.foresee(matches)
        assert policy.plan() == matches
    policy.reset()
    with pytest.raises(UserError, match="^Policy oracle must know the target's answer beforehand: replay it"):
        policy.plan()


def test_only_the_oracle_is_one():
    assert [name for name, option in POLICIES.items() if option.rule.oracle] == ["oracle"]
