"""Each policy's settings are chosen on one half of the questions; the other half has no say in it."""

from dataclasses import replace

import numpy as np
import pytest
from replay.made_tables import draw_table, make_turn

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.policies.base import with_settings
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench, key_of
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.bootstrap import stratified_ratio_interval
from gammatune.studies.tuning import chosen_settings, grid_of, mean_on_tuning, rank_tuned, tune_all

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


def test_what_two_names_share_is_replayed_once():
    """A rule and its preset come to the same settings, each from its own defaults."""
    bench, names = build_bench(draw_table(2, questions=12), from_ratio(9)), ("cumulative_loose", "cumulative_loosest")
    found = tune_all(bench, {name: POLICIES[name]() for name in names})
    assert len(bench.known) == len({key_of(p) for name in names for p in (found[name].policy, POLICIES[name]())}) < 4
    assert np.array_equal(*(found[name].speeds for name in names))
    assert not np.array_equal(*(found[name].default for name in names))
    assert [found[name].policy.name for name in names] == list(names)


@pytest.mark.parametrize("carry", ["turn", "never"])
def test_the_other_half_is_replayed_for_a_choice_only_where_something_is_carried_over(bench, carry):
    """And then it counts: what was learned on it is there when the tuning half is asked about."""
    policies = [POLICIES["gammatune"](carry=carry, gamma=gamma, eta=0.77) for gamma in (2, 9)]
    whole = [replace(bench).speeds(policy)[bench.tuning].mean() for policy in policies]
    before = len(bench.known)
    assert mean_on_tuning(bench, policies) == pytest.approx(whole, rel=1e-12)
    assert len(bench.known) - before == (2 if carry == "never" else 0)


def test_the_ranking_is_that_of_the_other_half(bench):
    tuned = tune_all(bench, {name: POLICIES[name]() for name in ("ar", "fixed", "svip")})
    rows, rest = rank_tuned(bench, tuned).set_index("policy"), ~bench.tuning
    ar, fixed, svip = (tuned[name].speeds[rest] for name in ("ar", "fixed", "svip"))
    assert rows.loc["svip", "tuned_over_autoregressive"] == pytest.approx(svip.mean() / ar.mean())
    assert rows.loc["svip", "tuned_over_tuned_fixed"] == pytest.approx(svip.mean() / fixed.mean())
    assert rows.loc["svip", "default_over_autoregressive"] == pytest.approx(tuned["svip"].default[rest].mean() / ar.mean())
    assert not rows.loc["ar", "tunable"] and rows.loc["ar", "settings"] == ""
    strata = [np.stack([svip[bench.task[rest] == task], ar[bench.task[rest] == task]]) for task in np.unique(bench.task)]
    expected = stratified_ratio_interval(strata)
    ends = ["tuned_over_autoregressive_low", "tuned_over_autoregressive_high"]
    assert rows.loc["svip", ends].tolist() == pytest.approx(list(expected), abs=0.02)  # other draws of questions
    assert (rows.loc["fixed", ["tuned_over_tuned_fixed_low", "tuned_over_tuned_fixed_high"]] == 1).all()


def test_one_question_of_each_task_gives_no_interval():
    bench = build_bench(AcceptanceTable([make_turn(EASY, question_id=n) for n in range(2)]), from_ratio(6))
    rows = rank_tuned(bench, tune_all(bench, {name: POLICIES[name]() for name in ("ar", "fixed")}))
    assert rows["tuned_over_autoregressive_low"].isna().all() and rows["tuned_over_autoregressive"].notna().all()


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
