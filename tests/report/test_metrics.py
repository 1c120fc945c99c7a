"""Each definition against numbers worked out by hand."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
from stored import Recipe, store_run

from gammatune.records import Round, TurnLog
from gammatune.report import metrics
from gammatune.runs import frames
from gammatune.runs.store import read_run


def make_round(drafted, accepted, emitted=None, forwards=None, times=(0.0, 0.0, 0.0)):
    emitted = accepted + 1 if emitted is None else emitted
    return Round(drafted, drafted, accepted, emitted, drafted if forwards is None else forwards, "length", 0, *times)


def make_turn(question, rounds, wall_ms=1000.0, prefill_ms=100.0, place=(0, 0)):
    turn, repetition = place
    tokens = sum(r.emitted for r in rounds)
    return TurnLog(question, "qa", "qa", turn, 10, list(range(tokens)), "length", prefill_ms, wall_ms, rounds, repetition)


def tabulate(*turns, label="x", policy="fixed", gamma=5):
    arm = SimpleNamespace(label=label, policy=policy, gamma=gamma, turns=list(turns))
    table = frames.turn_table([arm])
    return table, frames.question_table(table), frames.round_table([arm])


# Two rounds: 4 drafted, 3 accepted, 4 emitted; 4 drafted (one more forward was dropped), 0 accepted, 1 emitted.
TWO_ROUNDS = [make_round(4, 3, times=(40, 50, 1)), make_round(4, 0, forwards=5, times=(50, 50, 1))]


def test_token_metrics_of_two_rounds():
    turns, _, _ = tabulate(make_turn(1, TWO_ROUNDS))
    assert metrics.acceptance_rate(turns) == 3 / 8
    assert metrics.mean_accepted_tokens(turns) == 5 / 2
    assert metrics.tokens_per_target_forward(turns) == 5 / 3
    assert metrics.wasted_draft_fraction(turns) == 5 / 8
    assert metrics.wasted_forward_fraction(turns) == 6 / 9


def test_end_of_sequence_without_bonus_counts_what_was_emitted():
    turns, _, _ = tabulate(make_turn(1, [make_round(3, 3), make_round(2, 2, emitted=2)]))
    assert metrics.mean_accepted_tokens(turns) == 6 / 2


def test_pooled_and_per_question_acceptance_differ():
    """90 of 100 in a long answer, 1 of 10 in a short one: 91/110 pooled, 1/2 per question."""
    long = make_turn(1, [make_round(10, 9)] * 10)
    short = make_turn(2, [make_round(10, 1)])
    _, questions, _ = tabulate(long, short)
    assert metrics.acceptance_rate(questions) == pytest.approx(91 / 110)
    assert metrics.acceptance_rate_per_question(questions) == pytest.approx(0.5)


def test_questions_that_drafted_nothing_do_not_count_in_acceptance_per_question():
    _, questions, _ = tabulate(make_turn(1, [make_round(4, 2)]), make_turn(2, [make_round(0, 0)]))
    assert metrics.acceptance_rate_per_question(questions) == 0.5


def test_an_arm_that_never_drafts_has_no_acceptance_rate():
    turns, questions, rounds = tabulate(make_turn(1, [make_round(0, 0)] * 5))
    assert math.isnan(metrics.acceptance_rate(turns)) and math.isnan(metrics.wasted_forward_fraction(turns))
    assert math.isnan(metrics.acceptance_rate_per_question(questions))
    assert metrics.mean_accepted_tokens(turns) == 1.0
    assert metrics.conditional_acceptance(rounds).empty


def test_conditional_acceptance_by_hand():
    """Drafted/accepted 3/3, 3/1, 3/0, 1/1: accepted are 3 of 4 first, one of two second and the one third token."""
    rounds = [make_round(3, 3), make_round(3, 1), make_round(3, 0), make_round(1, 1)]
    _, _, table = tabulate(make_turn(1, rounds))
    found = metrics.conditional_acceptance(table)
    assert found["rate"].to_dict() == {1: 3 / 4, 2: 1 / 2, 3: 1.0}
    assert found["reached"].to_dict() == {1: 4, 2: 2, 3: 1}


def test_speed_of_a_question_pools_its_turns():
    """10 tokens in 1 s and 20 in 4 s are 30 / 5 = 6 tokens/s, not the mean of 10 and 5."""
    first = make_turn(1, [make_round(9, 9)], wall_ms=1000)
    second = make_turn(1, [make_round(19, 19)], wall_ms=4000, place=(1, 0))
    _, questions, _ = tabulate(first, second)
    assert metrics.tokens_per_second(questions) == pytest.approx(6.0)


def test_speed_is_in_tokens_not_characters():
    """Four ids in half a second are 8 tokens/s, whatever text they stand for."""
    _, questions, _ = tabulate(make_turn(1, [make_round(3, 3)], wall_ms=500))
    assert metrics.tokens_per_second(questions) == pytest.approx(8.0)


def two_arms():
    """Arm: 20 tokens/s on 20 tokens, 5 tokens/s on 10; baseline: 10 and 5 tokens/s on the same."""
    twenty, ten = [make_round(19, 19)], [make_round(9, 9)]
    _, arm, _ = tabulate(make_turn(1, twenty, wall_ms=1000), make_turn(2, ten, wall_ms=2000))
    _, base, _ = tabulate(make_turn(1, twenty, wall_ms=2000), make_turn(2, ten, wall_ms=2000), label="ar")
    return arm, base


def test_speedup_is_a_ratio_of_means_and_total_a_ratio_of_sums():
    arm, base = two_arms()
    assert metrics.speedup(arm, base) == pytest.approx(12.5 / 7.5)
    assert metrics.speedup_total(arm, base) == pytest.approx((30 / 3) / (30 / 4))
    assert metrics.speedup_spread(arm, base) == pytest.approx(math.sqrt(0.5))


def test_speedup_over_another_arm_is_its_inverse_the_other_way():
    arm, base = two_arms()
    assert metrics.speedup(arm, base) * metrics.speedup(base, arm) == pytest.approx(1.0)


def test_baseline_against_itself_is_exactly_one(tmp_path):
    run = read_run(store_run(tmp_path / "run", Recipe(arms=("ar", "fixed-2"))))
    base = run.questions[run.questions["label"] == "ar"]
    assert metrics.speedup(base, base) == 1.0
    assert metrics.speedup_total(base, base) == 1.0
    assert metrics.speedup_spread(base, base) == 0.0


def test_tokens_are_counted_alike_on_all_arms(tmp_path):
    """Two autoregressive arms, one of them called a policy: equal counts, so a speedup of counts is exactly 1.000."""
    run = read_run(store_run(tmp_path / "run", Recipe(arms=("ar", "fixed-0", "gammatune-3"))))
    tokens = run.turns.groupby("label")["tokens"].sum()
    assert tokens["ar"] / tokens["fixed-0"] == 1.0
    assert tokens["ar"] / tokens["gammatune-3"] == 1.0
    assert frames.count_tokens(make_turn(1, [make_round(3, 3)])) == 4


def test_repetitions_are_averaged():
    """The same 10 tokens at 10 and at 20 tokens/s."""
    ten = [make_round(9, 9)]
    _, questions, _ = tabulate(make_turn(1, ten, wall_ms=1000), make_turn(1, ten, wall_ms=500, place=(0, 1)))
    assert metrics.tokens_per_second(questions) == pytest.approx(15.0)


def test_gain_over_mean_fixed_takes_common_starts_only():
    """Fixed 10 and 20 tokens/s from 2 and 4 (and 40 from 8), policy 24 and 18: (24 + 18) / (10 + 20)."""
    speeds = [("fixed", 2, 10), ("fixed", 4, 20), ("fixed", 8, 40), ("gammatune", 2, 24), ("gammatune", 4, 18)]
    rows = [
        {"policy": p, "gamma": g, "label": f"{p}-{g}", "task": "qa", "question_id": 1, "tokens_per_second": s}
        for p, g, s in speeds
    ]
    questions = pd.DataFrame(rows)
    assert metrics.gain_over_mean_fixed(questions, "gammatune") == pytest.approx(42 / 30)
    assert math.isnan(metrics.gain_over_mean_fixed(questions[questions["gamma"] == 2], "gammatune"))
    assert math.isnan(metrics.gain_over_mean_fixed(questions, "hf_constant"))


def test_time_split():
    """Of 1000 ms: 100 prefill, 90 draft, 100 verify, 2 policy, the rest uncovered."""
    turns, _, _ = tabulate(make_turn(1, TWO_ROUNDS))
    expected = {"prefill": 0.1, "draft": 0.09, "verify": 0.1, "policy": 0.002, "other": 0.708}
    assert metrics.time_split(turns) == pytest.approx(expected)


def test_time_split_without_clocks_in_the_loop_knows_prefill_only():
    turns, _, _ = tabulate(make_turn(1, [make_round(4, 2)]))
    split = metrics.time_split(turns)
    assert split.pop("prefill") == pytest.approx(0.1)
    assert all(math.isnan(share) for share in split.values())


@pytest.mark.parametrize(
    ("count", "levels"), [(4, ["p25", "p50", "p75"]), (999, ["p25", "p50", "p75"]), (1000, ["p25", "p50", "p75", "p99"])]
)
def test_extreme_quantiles_need_a_thousand_values(count, levels):
    found = metrics.quantiles(pd.Series(range(count)))
    assert list(found) == levels
    assert found["p50"] == (count - 1) / 2
