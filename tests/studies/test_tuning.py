"""Each policy's settings are chosen on one half of the questions; the other half has no say in it."""

import numpy as np
import pytest
from replay.made_tables import draw_table, make_turn

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.policies.base import with_settings
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.tuning import chosen_settings, grid_of, tune_all

EASY, HARD = "1" * 24, "0" * 24


def test_the_tuning_half_alone_chooses():
    """Every second question, the tuning half, is easy, the others hard: the longest gamma is chosen, and slow on these."""
    turns = [make_turn(matches, question_id=number) for number, matches in enumerate([HARD, EASY, HARD, EASY])]
    bench = build_bench(AcceptanceTable(turns), from_ratio(6))
    found = tune_all(bench, {"fixed": POLICIES["fixed"](gamma=2)})["fixed"]
    assert found.settings == {"gamma": 24} and found.policy.gamma == 24 and found.policy.name == "fixed"
    assert (found.speeds[bench.tuning] > found.default[bench.tuning]).all()
    assert (found.speeds[~bench.tuning] < found.default[~bench.tuning]).all()


@pytest.fixture(scope="module")
def bench():
    return build_bench(draw_table(2, questions=12), from_ratio(9))


def test_of_every_shipped_policy_the_fastest_point_of_its_grid(bench):
    """Or what it came with, where that is faster; each is replayed here by itself."""
    policies = {name: POLICIES[name]() for name in POLICIES}
    for name, found in tune_all(bench, policies).items():
        tried = [{}, *grid_of(policies[name])]
        speeds = np.stack([bench.speeds(with_settings(policies[name], **point)) for point in tried])
        best = int(speeds[:, bench.tuning].mean(axis=1).argmax())
        assert found.settings == tried[best], name
        assert np.array_equal(found.speeds, speeds[best]) and np.array_equal(found.default, speeds[0])


def test_every_grid_names_settings_that_can_be_set():
    for name in POLICIES:
        for point in grid_of(POLICIES[name]()):
            made = POLICIES[name](**point)
            assert {field: getattr(made, field) for field in point} == point


def test_one_question_cannot_be_split():
    bench = build_bench(AcceptanceTable([make_turn(EASY)]), from_ratio(6))
    with pytest.raises(UserError, match="cannot be split for tuning: record more questions"):
        tune_all(bench, {"ar": POLICIES["ar"]()})


def test_chosen_settings_are_the_grid_and_what_is_unlike_the_defaults():
    assert chosen_settings(POLICIES["fixed"]()) == {"gamma": 5}
    assert chosen_settings(POLICIES["hf_constant"]()) == {"gamma": 20}
    assert chosen_settings(POLICIES["optimal_stopping_blind"]()) == {}
    assert chosen_settings(POLICIES["optimal_stopping"](gamma=8)) == {"gamma": 8}
    assert chosen_settings(POLICIES["svip"](carry="never")) == {"threshold": POLICIES["svip"]().threshold, "carry": "never"}
