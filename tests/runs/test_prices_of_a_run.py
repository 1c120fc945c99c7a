"""What rounds cost, for the policies that decide by it: measured or given once, stored with the run, told alike to all."""

import shutil

import pyarrow.parquet as pq
import pytest
from comparing import logged
from replay.made_tables import put, store_columns
from report.stored_study import make_curve

from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.replay.prices import hand_prices, prices_to_json, read_prices
from gammatune.runs import runner as runner_module
from gammatune.runs.measure_prices import Plan, PriceRun
from gammatune.runs.store import read_run
from gammatune.studies.replay_check import check_replay

FORMS = ["optimal_stopping", "optimal_stopping_no_memory", "optimal_stopping_blind"]
ARMS = (f"policy=[{','.join(FORMS)}]", "policy.optimal_stopping_blind.carry=never", "policy.optimal_stopping.carry=question")


@pytest.fixture
def given(tmp_path):
    """A price file by which drafting pays."""
    path = tmp_path / "given.json"
    write_json(path, prices_to_json(make_curve()))
    return path


@pytest.fixture
def told(monkeypatch):
    """Every price list that a policy of the run was told."""
    seen = []

    def noting(policy, curve, forwards):
        seen.append((policy.name, curve, forwards))
        hand_prices(policy, curve, forwards)

    monkeypatch.setattr(runner_module, "hand_prices", noting)
    return seen


def check_run(runner):
    check = check_replay(read_run(runner.folder.path))
    assert (check.arms, check.differing, check.unchecked) == (len(FORMS), 0, [])
    return check


def test_a_run_measures_prices_once_and_every_arm_is_told_the_same(make_runner, tmp_path, told):
    runner = make_runner(tmp_path / "results", arms=ARMS)
    runner.run()
    stored = read_prices(runner.folder.path / "prices.json")
    assert sorted(name for name, _, _ in told) == sorted(FORMS)
    assert all((curve, forwards) == (stored, 1) for _, curve, forwards in told)
    assert stored.facts["unit"] == "ms" and stored.facts["provenance"]["packages"]["torch"]
    check_run(runner)


def test_given_prices_are_those_of_the_run_and_part_of_its_name(make_runner, tmp_path, given, told, monkeypatch):
    monkeypatch.setattr(PriceRun, "run", lambda run: pytest.fail("measured although prices were given"))
    runner = make_runner(tmp_path / "results", f"prices={given}", arms=ARMS)
    runner.run()
    assert all(curve == make_curve() for _, curve, _ in told)
    assert any(r.drafted > 1 for arm in read_run(runner.folder.path).arms for turn in arm.turns for r in turn.rounds)
    check_run(runner)
    write_json(given, prices_to_json(make_curve()) | {"pair": "another"})
    assert make_runner(tmp_path / "results", f"prices={given}", arms=ARMS).folder.path != runner.folder.path


def test_an_interrupted_run_goes_on_with_the_prices_that_it_was_begun_with(make_runner, tmp_path, given, monkeypatch):
    """Also where measuring again would give others."""
    words = {"repetitions": "repetitions=2"}
    whole = make_runner(tmp_path / "whole", words["repetitions"], f"prices={given}", arms=ARMS)
    whole.run()
    broken = make_runner(tmp_path / "broken", words["repetitions"], f"prices={given}", arms=ARMS)
    original, left = broken.answer, iter(range(7))

    def stop_after_some(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(*arguments)

    broken.answer = stop_after_some
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = make_runner(tmp_path / "broken", words["repetitions"], f"prices={given}", arms=ARMS)
    again.given = None
    monkeypatch.setattr(PriceRun, "run", lambda run: pytest.fail("measured again"))
    again.run()
    assert logged(again) == logged(whole)
    check_run(again)


def test_a_run_that_nobody_decides_by_prices_in_has_none(make_runner, tmp_path):
    runner = make_runner(tmp_path / "results")
    runner.run()
    assert not (runner.folder.path / "prices.json").exists()


def test_prices_that_no_policy_reads_and_files_that_hold_none_are_refused(make_config, make_runner, small, tmp_path, given):
    with pytest.raises(UserError, match="prices=.*given.json is read by none of these policies: leave it out"):
        make_config(*small, "policy=fixed", f"prices={given}")
    with pytest.raises(UserError, match="missing.json"):
        make_runner(tmp_path / "results", f"prices={tmp_path / 'missing.json'}", arms=ARMS)


def test_a_check_says_what_it_lacks(make_runner, tmp_path, given):
    """A run without its prices, and one whose table does not name rejected tokens."""
    runner = make_runner(tmp_path / "results", f"prices={given}", arms=ARMS)
    runner.run()
    poor = shutil.copytree(runner.folder.path, tmp_path / "poor")
    (poor / "prices.json").unlink()
    check = check_replay(read_run(poor))
    assert check.arms == 0 and len(check.unchecked) == 3
    assert check.unchecked[0] == "optimal_stopping-16 (prices.json, by which it decided, is missing)"
    old = shutil.copytree(runner.folder.path, tmp_path / "old")
    content = pq.read_table(old / "acceptance.parquet")
    store_columns(put(content, "proposed_ids", [None] * len(content)), old / "acceptance.parquet")
    check = check_replay(read_run(old))
    assert check.arms == 1 and len(check.unchecked) == 2
    assert check.unchecked[0] == "optimal_stopping-16 (the table does not name rejected tokens, of which it was told)"


def test_brief_plans_fit_short_contexts_and_refuse_what_cannot_be_measured():
    assert Plan.brief(2048).gamma_max == 8
    assert Plan.brief(20).fit(20).gamma_max < 8
    with pytest.raises(UserError, match="too few to measure prices: give them with prices=FILE"):
        Plan.brief(4)
