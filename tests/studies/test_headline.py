"""The headline's ratios on speeds made by hand, their intervals, and their bounds where matches are unknown."""

import math

import numpy as np
import pytest
from replay.made_tables import LENGTH_ONLY, draw_table, make_turn

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.simulate import fill_unknown
from gammatune.replay.speeds import Bench, build_bench, split_questions
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.bounds import bounded_numbers, bounded_speeds, estimate_match_rate
from gammatune.studies.headline import (
    FILLS,
    METRICS,
    STARTS,
    Speeds,
    headline_frame,
    replay_all,
    start_variants,
)

KEYS = ["over_mean_fixed", "over_best_fixed", "over_tuned_fixed", "over_oracle", "over_autoregressive", "spread_over_starts"]
WITH_HEURISTIC = [*KEYS[:3], "over_heuristic", *KEYS[3:]]


def make_speeds(fixed, adaptive, task=None, oracle=40.0, ar=10.0, tuning=None) -> Speeds:
    """fixed, adaptive: [starts, questions], or [questions] for a policy without starts."""
    fixed, adaptive = np.atleast_2d(np.array(fixed, float)), np.atleast_2d(np.array(adaptive, float))
    questions = fixed.shape[1]
    task = np.array(task or ["qa"] * questions)
    flat = {"ar": np.full((1, questions), ar), "oracle": np.full((1, questions), oracle)}
    by_policy = {"ar": flat["ar"], "fixed": fixed, "oracle": flat["oracle"], "adaptive": adaptive}
    return Speeds(by_policy, task, split_questions(task) if tuning is None else np.array(tuning))


def column(values, questions: int) -> np.ndarray:
    """The same speed for every question, one row per start."""
    return np.repeat(np.array(values, float)[:, None], questions, axis=1)


FIXED = [20, 24, 28, 26, 22, 20, 18, 16, 12, 10, 8, 6]  # mean 17.5, best 28 at the third start
ADAPTIVE = [21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 18, 24]  # mean 21


@pytest.fixture
def speeds():
    return make_speeds(column(FIXED, 6), column(ADAPTIVE, 6))


def test_each_ratio_by_hand(speeds):
    assert speeds.numbers("adaptive") == {
        "over_mean_fixed": pytest.approx(21 / 17.5),
        "over_best_fixed": pytest.approx(21 / 28),
        "over_tuned_fixed": pytest.approx(21 / 28),
        "over_oracle": pytest.approx(21 / 40),
        "over_autoregressive": pytest.approx(21 / 10),
        "spread_over_starts": pytest.approx((24 - 18) / 21),
    }


def test_the_metrics_are_these_and_in_this_order():
    assert list(METRICS) == WITH_HEURISTIC
    assert STARTS == (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24)


def test_fixed_over_mean_fixed_is_one_in_every_part():
    rng = np.random.default_rng(1)
    speeds = make_speeds(rng.uniform(5, 30, (12, 9)), rng.uniform(5, 30, (12, 9)), ["qa", "rag", "qa"] * 3)
    for task in ("qa", "rag", "overall"):
        assert speeds.ratio("fixed", "over_mean_fixed", task) == 1
        assert speeds.interval("fixed", "over_mean_fixed", task) == (1, 1)
        assert speeds.ratio("ar", "over_autoregressive", task) == speeds.ratio("oracle", "over_oracle", task) == 1


def test_speeds_are_means_over_questions_before_the_ratio():
    """A ratio of means, not a mean of ratios: (30 + 10) / (10 + 10), not (3 + 1) / 2 of these questions."""
    fixed = column([10] * 12, 2)
    adaptive = np.repeat([[60.0, 10.0]], 12, axis=0)
    ratio = make_speeds([[40.0, 10.0]] * 12, adaptive).ratio("adaptive", "over_mean_fixed")
    assert ratio == pytest.approx(70 / 50)
    assert make_speeds(fixed, adaptive).ratio("adaptive", "over_mean_fixed") == pytest.approx(70 / 20)


def test_a_policy_without_starts_has_no_spread_and_is_compared_as_it_is():
    speeds = make_speeds(column(FIXED, 4), [35.0] * 4)
    assert speeds.ratio("adaptive", "spread_over_starts") == 0
    assert speeds.ratio("adaptive", "over_mean_fixed") == pytest.approx(2)


def test_each_task_has_its_own_best_gamma():
    """qa is fastest from the first start, rag from the last; overall another."""
    fixed = np.array([[30.0, 10.0]] + [[21.0, 21.0]] * 10 + [[5.0, 31.0]])
    speeds = make_speeds(fixed, column([42] * 12, 2), ["qa", "rag"])
    assert [speeds.best_gamma(task) for task in ("qa", "rag", "overall")] == [0, 11, 1]
    found = {task: speeds.ratio("adaptive", "over_best_fixed", task) for task in ("qa", "rag", "overall")}
    assert found == {"qa": pytest.approx(42 / 30), "rag": pytest.approx(42 / 31), "overall": pytest.approx(2)}


def test_tuned_fixed_is_chosen_on_one_half_and_measured_on_the_other():
    """The second start wins the tuning half (questions 1, 3); the other half, and both together, like the fifth one."""
    fixed = np.full((12, 4), 10.0)
    fixed[1] = [12, 90, 14, 90]
    fixed[4] = [120, 80, 120, 80]
    adaptive = np.full((12, 4), 26.0)
    adaptive[:, 1::2] = 1000  # nothing of this half may count
    speeds = make_speeds(fixed, adaptive)
    assert speeds.tuning.tolist() == [False, True, False, True]
    assert (speeds.tuned_gamma(), speeds.best_gamma()) == (1, 4)
    assert speeds.ratio("adaptive", "over_tuned_fixed") == pytest.approx(26 / 13)
    assert speeds.ratio("adaptive", "over_best_fixed") == pytest.approx(513 / 100)
    low, high = speeds.interval("adaptive", "over_tuned_fixed")
    assert 26 / 14 <= low < 2 < high <= 26 / 12


def test_with_one_question_the_tuned_gamma_is_the_best_one(speeds):
    alone = make_speeds(column(FIXED, 1), column(ADAPTIVE, 1))
    assert alone.tuned_gamma() == alone.best_gamma() == 2
    assert alone.ratio("adaptive", "over_tuned_fixed") == pytest.approx(21 / 28)
    assert all(math.isnan(bound) for metric in KEYS for bound in alone.interval("adaptive", metric))


def noisy_speeds(questions: int) -> Speeds:
    """Hard and easy questions, on which the policy is 1.2 times as fast as fixed, give or take."""
    rng = np.random.default_rng(5)
    hardness = rng.uniform(10, 40, questions)
    fixed = hardness * np.linspace(0.8, 1.2, 12)[:, None]
    adaptive = 1.2 * hardness * rng.uniform(0.8, 1.2, questions) * np.ones((12, 1))
    return make_speeds(fixed, adaptive, ["qa", "rag"] * (questions // 2))


@pytest.mark.parametrize("metric", KEYS[:-1])
@pytest.mark.parametrize("task", ["qa", "overall"])
def test_intervals_contain_the_value_and_shrink_with_more_questions(metric, task):
    widths = []
    for questions in (16, 200):
        speeds = noisy_speeds(questions)
        low, high = speeds.interval("adaptive", metric, task)
        assert low < speeds.ratio("adaptive", metric, task) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_intervals_are_the_same_every_time_and_pair_the_arms():
    """Questions differ by a factor of four, the ratio hardly: only a paired interval is this narrow."""
    low, high = noisy_speeds(40).interval("adaptive", "over_mean_fixed")
    assert (low, high) == noisy_speeds(40).interval("adaptive", "over_mean_fixed")
    assert high - low < 0.12
    assert noisy_speeds(40).interval("adaptive", "spread_over_starts") != (low, high)


def test_the_spread_over_starts_has_no_interval(speeds):
    assert all(math.isnan(bound) for bound in speeds.interval("adaptive", "spread_over_starts"))


def test_the_frame_has_every_task_policy_and_metric():
    rng = np.random.default_rng(2)
    speeds = make_speeds(rng.uniform(5, 30, (12, 8)), rng.uniform(5, 30, (12, 8)), ["rag", "mt_bench"] * 4)
    frame = headline_frame(speeds)
    assert list(dict.fromkeys(frame["task"])) == ["mt_bench", "rag", "overall"]
    assert len(frame) == 3 * 4 * len(KEYS) and frame["value"].notna().all()
    row = frame.set_index(["task", "policy", "metric"]).loc["rag", "adaptive", "over_oracle"]
    expected = (speeds.ratio("adaptive", "over_oracle", "rag"), *speeds.interval("adaptive", "over_oracle", "rag"))
    assert tuple(row) == expected


def test_a_policy_starts_from_every_gamma_where_gamma_is_a_start():
    found = start_variants("gammatune", POLICIES["gammatune"](eta=0.2, gamma=9))
    assert [policy.gamma for policy in found] == list(STARTS) and {policy.eta for policy in found} == {0.2}
    assert [policy.gamma for policy in start_variants("fixed", POLICIES["fixed"]())] == list(STARTS)
    assert start_variants("svip", svip := POLICIES["svip"]()) == [svip]
    assert start_variants("tuned_fixed", tuned := POLICIES["tuned_fixed"](gamma=4)) == [tuned]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build_bench(draw_table(21, questions=8), from_ratio(10))


def test_replayed_speeds_are_those_of_the_bench(bench):
    speeds = replay_all(bench, {"gammatune": POLICIES["gammatune"](), "svip": POLICIES["svip"]()})
    assert list(speeds.by_policy) == ["ar", "fixed", "oracle", "gammatune", "svip"]
    assert {name: len(rows) for name, rows in speeds.by_policy.items()} == {
        "ar": 1, "fixed": 12, "oracle": 1, "gammatune": 12, "svip": 1
    }  # fmt: skip
    for place, gamma in enumerate(STARTS):
        assert (speeds.by_policy["gammatune"][place] == bench.speeds(POLICIES["gammatune"](gamma=gamma))).all()
        assert (speeds.by_policy["fixed"][place] == bench.speeds(POLICIES["fixed"](gamma=gamma))).all()
    assert (speeds.tuning == bench.tuning).all() and (speeds.task == bench.task).all()


def test_nothing_is_faster_than_the_oracle_and_the_target_alone_makes_a_token_per_c(bench):
    speeds = replay_all(bench, {name: rule() for name, rule in POLICIES.items()})
    for name in POLICIES:
        assert speeds.ratio(name, "over_oracle") <= 1 + 1e-12
        assert (speeds.by_policy[name] <= speeds.by_policy["oracle"] + 1e-9).all()
    assert speeds.by_policy["ar"][0] == pytest.approx([1000 / 10] * 8)


def test_tuned_fixed_takes_the_gamma_of_the_tuning_half(bench):
    speeds = replay_all(bench, {"tuned_fixed": POLICIES["tuned_fixed"](gamma=24)})
    assert (speeds.by_policy["tuned_fixed"][0] == speeds.by_policy["fixed"][speeds.tuned_gamma()]).all()
    assert speeds.ratio("tuned_fixed", "over_tuned_fixed") == 1


@pytest.mark.parametrize("gamma", [5, 9])  # a start of the twelve, and another
def test_the_heuristic_is_met_from_its_own_start(bench, gamma):
    """Which is transformers' default, 5, or what the settings say; all the other starts have no part in it."""
    policies = {"gammatune": POLICIES["gammatune"](), "hf_heuristic": POLICIES["hf_heuristic"](gamma=gamma)}
    speeds = replay_all(bench, policies)
    own = bench.speeds(POLICIES["hf_heuristic"](gamma=gamma))
    adaptive = np.mean([bench.speeds(POLICIES["gammatune"](gamma=start)) for start in STARTS], axis=0)
    assert speeds.ratio("gammatune", "over_heuristic") == pytest.approx(adaptive.mean() / own.mean())
    low, high = speeds.interval("gammatune", "over_heuristic")
    assert low < speeds.ratio("gammatune", "over_heuristic") < high
    task = speeds.task[0]
    part = speeds.task == task
    assert speeds.ratio("gammatune", "over_heuristic", task) == pytest.approx(adaptive[part].mean() / own[part].mean())
    assert list(speeds.numbers("fixed")) == WITH_HEURISTIC and "over_heuristic" in set(headline_frame(speeds)["metric"])


def test_without_the_heuristic_nothing_is_divided_by_it(bench):
    speeds = replay_all(bench, {"gammatune": POLICIES["gammatune"]()})
    assert list(speeds.numbers("gammatune")) == KEYS and "over_heuristic" not in set(headline_frame(speeds)["metric"])


@pytest.fixture(scope="module")
def unknown() -> AcceptanceTable:
    rng = np.random.default_rng(3)
    drawn = ["".join(rng.choice(list("0111?"), size=30)) for _ in range(6)]
    return AcceptanceTable([make_turn(each, watched=False, question_id=n) for n, each in enumerate(drawn)])


def test_bounds_of_unknown_positions(unknown):
    curve, chosen, rate = from_ratio(12), {"gammatune": POLICIES["gammatune"]()}, estimate_match_rate(unknown)
    found = bounded_numbers(bounded_speeds(unknown, curve, chosen))
    assert list(found) == ["ar", "fixed", "oracle", "gammatune"]
    for numbers in found.values():
        assert list(numbers) == KEYS and all(list(each) == ["lower", "mean", "upper"] for each in numbers.values())
    for name, bound in (("lower", 0.0), ("upper", 1.0)):
        speeds = replay_all(build_bench(fill_unknown(unknown, bound), curve), chosen)
        assert found["gammatune"]["over_mean_fixed"][name] == speeds.ratio("gammatune", "over_mean_fixed")
    fills = [replay_all(build_bench(fill_unknown(unknown, rate, seed), curve), chosen) for seed in range(FILLS)]
    mean = np.mean([speeds.ratio("gammatune", "over_oracle") for speeds in fills])
    assert found["gammatune"]["over_oracle"]["mean"] == pytest.approx(mean)


def test_more_matches_make_every_fixed_gamma_faster_over_the_target_alone(unknown):
    found = bounded_numbers(bounded_speeds(unknown, from_ratio(12), {}))
    for name in ("fixed", "oracle"):
        each = found[name]["over_autoregressive"]
        assert each["lower"] < each["mean"] < each["upper"]
    assert set(found["fixed"]["over_mean_fixed"].values()) == {1.0}


def test_bounds_of_a_policy_that_watches_are_refused(unknown):
    with pytest.raises(UserError, match="SVIP watches the draft"):
        bounded_speeds(unknown, from_ratio(12), {"svip": POLICIES["svip"]()})
    assert "gammatune" in LENGTH_ONLY
