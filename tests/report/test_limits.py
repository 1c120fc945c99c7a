"""What limits a run is said in words where speculation does not surely pay, and nowhere else."""

import pytest
from stored import Recipe, store_run

from gammatune.report.limits import Limits, explain_limits, measure_limits
from gammatune.report.results import results_table
from gammatune.runs.store import read_run


def explain(run) -> str:
    return explain_limits(run, results_table(run))


@pytest.fixture
def run(tmp_path):
    return read_run(store_run(tmp_path / "run", Recipe()))


def test_the_break_even_is_where_a_drafted_token_pays_for_itself():
    limits = Limits(target_ms=10.0, draft=0.25, verify=1.15, acceptance=0.3)
    a = limits.break_even
    assert a == pytest.approx(0.4) and (1 + a) / (limits.verify + limits.draft) == pytest.approx(1)
    assert "pays from 40% acceptance on, and 30% are accepted" in limits.sentence()
    assert "no acceptance makes drafting pay" in Limits(10.0, 0.9, 1.2, 0.3).sentence()


def test_prices_and_acceptance_are_those_of_the_rounds(run):
    limits, rounds = measure_limits(run), run.rounds
    drafted = rounds[rounds["drafted"] > 0]
    assert limits.acceptance == pytest.approx((drafted["accepted"] > 0).mean())
    assert limits.target_ms == pytest.approx(rounds[rounds["label"] == "ar"]["verify_ms"].median())
    assert 0 < limits.draft < limits.verify


def test_it_is_said_only_where_no_arm_is_surely_faster(run, tmp_path):
    results = results_table(run)
    slow = results.assign(speedup=0.9, speedup_low=0.8)
    assert explain_limits(run, slow).startswith("Speculation does not surely pay here. What limits it: a plain step")
    assert explain_limits(run, results.assign(speedup=1.2, speedup_low=1.1)) == ""
    random = read_run(store_run(tmp_path / "random", Recipe(facts={"random_weights": True})))
    assert explain(random) == ""
