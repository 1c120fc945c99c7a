"""A grid is chosen on one half of the questions and reported on the other."""

import numpy as np
import pytest
from replay.made_tables import draw_table, make_turn

from gammatune.errors import UserError, explain
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.headline import STARTS
from gammatune.studies.sweep import parse_grid, sweep_policy

EASY, HARD = "1" * 24, "0" * 24


@pytest.fixture
def disagreeing():
    """Of each task, every second question (the tuning half) is easy, the others are hard: no gamma is good for both."""
    turns = [
        make_turn(matches, question_id=number, task=task)
        for task in ("qa", "rag")
        for number, matches in enumerate([HARD, EASY, HARD, EASY])
    ]
    return build_bench(AcceptanceTable(turns), from_ratio(6))


@pytest.fixture(scope="module")
def bench():
    return build_bench(draw_table(2, questions=12), from_ratio(9))


def test_the_winner_is_the_one_of_the_tuning_half_alone(disagreeing):
    found = sweep_policy(disagreeing, "fixed", [{"gamma": gamma} for gamma in (1, 4, 8)])
    assert found.winner == {"gamma": 8} and found.tuned_gamma == 24
    settings = found.settings.set_index("gamma")
    assert list(settings.index) == [8, 4, 1]
    assert list(settings["reporting_tokens_per_second"].sort_values().index) == [8, 4, 1]
    # 24 tokens at c = 6: with gamma 8 in 14 (6 for the last), 14, 11 units; alone in 24 rounds of 8 + 6
    assert settings.loc[8, "tuning_tokens_per_second"] == pytest.approx(1000 * 24 / (14 + 14 + 11))
    hard = sum(min(8, 23 - place) + 6 for place in range(24))
    assert settings.loc[8, "reporting_tokens_per_second"] == pytest.approx(1000 * 24 / hard)


def test_ratios_are_those_of_the_other_half(disagreeing):
    """There every question is the same, so the intervals are points."""
    found = sweep_policy(disagreeing, "fixed", [{"gamma": 1}, {"gamma": 8}])
    spent = {gamma: sum(min(gamma, 23 - place) + 6 for place in range(24)) for gamma in (0, 5, 8, 24)}
    assert found.over_default == pytest.approx([spent[5] / spent[8]] * 3)
    assert found.over_tuned_fixed == pytest.approx([spent[24] / spent[8]] * 3)
    assert found.over_autoregressive == pytest.approx([spent[0] / spent[8]] * 3)
    assert found.over_default[0] < 1 and found.over_autoregressive[0] < 1


def test_every_number_is_that_of_the_bench(bench):
    points = [{"eta": eta, "delta": delta} for eta in (0.1, 0.3, 0.9) for delta in (1, 4)]
    found = sweep_policy(bench, "gammatune", points)
    assert len(found.settings) == 6 and list(found.settings.columns[:2]) == ["eta", "delta"]
    for _, row in found.settings.iterrows():
        speeds = bench.speeds(POLICIES["gammatune"](eta=row["eta"], delta=int(row["delta"])))
        assert row["tuning_tokens_per_second"] == pytest.approx(speeds[bench.tuning].mean())
        assert row["reporting_tokens_per_second"] == pytest.approx(speeds[~bench.tuning].mean())
    best = found.settings["tuning_tokens_per_second"]
    assert best.is_monotonic_decreasing
    assert found.winner == {"eta": found.settings["eta"][0], "delta": found.settings["delta"][0]}
    rest, winner = ~bench.tuning, bench.speeds(POLICIES["gammatune"](**found.winner))
    default, alone = bench.speeds(POLICIES["gammatune"]()), bench.speeds(POLICIES["ar"]())
    for (value, low, high), reference in ((found.over_default, default), (found.over_autoregressive, alone)):
        assert value == pytest.approx(winner[rest].mean() / reference[rest].mean())
        assert low <= value <= high
    fixed = [bench.speeds(POLICIES["fixed"](gamma=gamma)) for gamma in STARTS]
    assert found.tuned_gamma == STARTS[int(np.argmax([speeds[bench.tuning].mean() for speeds in fixed]))]


def test_intervals_are_the_same_every_time(bench):
    first, second = (sweep_policy(bench, "gammatune", [{"eta": 0.1}, {"eta": 0.9}]) for _ in range(2))
    assert (first.over_tuned_fixed, first.over_autoregressive) == (second.over_tuned_fixed, second.over_autoregressive)
    assert first.over_autoregressive[1] < first.over_autoregressive[0] < first.over_autoregressive[2]


def test_of_equally_fast_settings_the_first_of_the_grid_wins_and_stands_first(bench):
    """gamma_max never matters where it is never reached."""
    bounds, etas = list(range(100, 130)), (0.1, 0.5, 0.9)
    found = sweep_policy(bench, "gammatune", [{"gamma_max": bound, "eta": eta} for bound in bounds for eta in etas])
    assert found.winner["gamma_max"] == 100
    for start in (0, 30, 60):
        assert found.settings["eta"][start : start + 30].nunique() == 1
        assert list(found.settings["gamma_max"][start : start + 30]) == bounds


def test_a_policy_that_watches_can_be_swept(bench):
    found = sweep_policy(bench, "svip", [{"threshold": value} for value in (0.1, 0.3, 0.6)])
    assert found.settings["tuning_tokens_per_second"].nunique() > 1


def test_a_table_of_one_question_a_task_is_refused():
    table = AcceptanceTable([make_turn("10", question_id=1), make_turn("10", question_id=2, task="rag")])
    with pytest.raises(UserError, match="one question per task, so it cannot be split for tuning: record more questions"):
        sweep_policy(build_bench(table, from_ratio(5)), "fixed", [{"gamma": 1}])


@pytest.mark.parametrize(
    ("words", "name", "points"),
    [
        (["policy.fixed.gamma=1,2"], "fixed", [{"gamma": 1}, {"gamma": 2}]),
        (["policy.fixed.gamma=range(1,4)"], "fixed", [{"gamma": 1}, {"gamma": 2}, {"gamma": 3}]),
        (["policy.fixed.gamma=7"], "fixed", [{"gamma": 7}]),
        (["policy.ucb.arms=[1,2],[1,4]"], "ucb", [{"arms": [1, 2]}, {"arms": [1, 4]}]),
        (
            ["policy.gammatune.eta=0.1,0.3", "policy.gammatune.full=planned,'drafted'"],
            "gammatune",
            [{"eta": eta, "full": full} for eta in (0.1, 0.3) for full in ("planned", "drafted")],
        ),
    ],
)
def test_a_grid_is_written_as_hydra_writes_sweeps(bench, words, name, points):
    assert parse_grid(words) == (name, points)
    assert len(sweep_policy(bench, name, points).settings) == len(points)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "A grid is over one policy's fields"),
        (["policy.fixed.gamma=1", "policy.ucb.risk=0.1"], "A grid is over one policy's fields"),
        (["gamma=1,2"], "gamma=1,2 is no part of a grid: write policy.NAME.FIELD=VALUE,VALUE with NAME one of ar, fixed"),
        (["policy=fixed"], "policy=fixed is no part of a grid"),
        (["policy.halving.gamma=1"], "policy.halving.gamma=1 is no part of a grid"),
        (["policy.fixed.gamma=1", "policy.fixed.gamma=2"], "A grid names each field once"),
        (["policy.fixed.gamma=interval(1,3)"], "lists no values: write KEY=VALUE,VALUE or KEY=range"),
        (["policy.fixed.gamma=range(3,1)"], "lists no values"),
        (["policy.fixed.gamma"], "The argument policy.fixed.gamma cannot be read"),
        (["policy.fixed.gamma=1,,2"], "cannot be read"),
        (["policy.fixed.gama=1,2"], "has no setting gama: choose one of carry, stop_token, gamma"),
        (["policy.fixed.gamma=few"], "gamma is wrong: Value 'few'"),
        (["policy.fixed.gamma=-1,2"], "Fixed.gamma=-1 is out of range: it must be 0 or more"),
    ],
)
def test_what_is_no_grid_is_refused_in_a_sentence(bench, words, sentence):
    with pytest.raises(Exception) as raised:
        sweep_policy(bench, *parse_grid(words))
    told = explain(raised.value)
    assert sentence in told and told.endswith(".") and "\n" not in told
