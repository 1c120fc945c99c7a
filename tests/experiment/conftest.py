"""Runs small enough to repeat, what to compare of them, and a seam at which decoding can be watched or disturbed."""

import pytest

from gammatune.experiment import runner as runner_module
from gammatune.experiment.runner import Runner

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


@pytest.fixture
def on_answer(monkeypatch):
    """on_answer(action): call action(made, policy) with every answer before it is logged; it may change or raise.

    Warm-up answers pass no seed and are left alone.
    """
    original = runner_module.generate_speculative

    def install(action):
        def watched(runtime, prompt, policy, decode, *seed):
            made = original(runtime, prompt, policy, decode, *seed)
            if seed:
                action(made, policy)
            return made

        monkeypatch.setattr(runner_module, "generate_speculative", watched)

    return install
