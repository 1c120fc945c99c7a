"""Runs small enough to repeat."""

import pytest

from gammatune.runs.runner import Runner

ARMS = ("policy=[ar,fixed,gammatune_plus,hf_heuristic]", "policy.hf_heuristic.carry=never", "policy.fixed.gamma=3")


@pytest.fixture(scope="session")
def make_runner(make_config, small):
    """make_runner(results, *overrides) -> Runner of the small run."""
    return lambda results, *overrides: Runner(make_config(*small, *ARMS, f"results={results}", *overrides))


@pytest.fixture(scope="session")
def undisturbed(make_runner, tmp_path_factory):
    """The small run, two passes, finished in one go."""
    runner = make_runner(tmp_path_factory.mktemp("undisturbed"), "repetitions=2")
    runner.run()
    return runner
