"""Runs small enough to repeat, on table models in the place of the tiny pair's Llamas."""

import pytest
from table_model import TableModel

from gammatune.decoding import loop
from gammatune.runs.earlier import read_earlier
from gammatune.runs.runner import Runner
from gammatune.runtimes.base import Models
from gammatune.studies.record import Recorder

ARMS = ("policy=[ar,fixed,gammatune_plus,hf_heuristic]", "policy.hf_heuristic.carry=never", "policy.fixed.gamma=3")


def build_tables(pair, runtime: str, release: bool = False) -> Models:
    """Tables in place of a pair's models."""
    draft = None if pair.draft is None else TableModel(pair.vocab_size, agreement=0.7)
    return Models(TableModel(pair.vocab_size), draft, runtime)


@pytest.fixture(scope="session")
def on_tables():
    """on_tables(make) -> make(), in which every engine that is built has table models."""

    def call(make):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build_models", build_tables)
            return make()

    return call


@pytest.fixture(scope="session")
def make_runner(make_config, small, on_tables):
    """make_runner(results, *overrides) -> Runner of the small run; policies: more than those of the config."""

    def make(results, *overrides, arms=ARMS, policies=(), drafter=None):
        config = make_config(*small, *arms, *overrides)
        config.results, config.drafter = str(results), drafter or config.drafter
        config.policy |= {policy.name: policy for policy in policies}
        return on_tables(lambda: Runner(config))

    return make


@pytest.fixture(scope="session")
def make_recorder(make_config, small, on_tables):
    """make_recorder(out, *overrides) -> Recorder of the small run's three questions."""

    def make(out, *overrides, depth=24, known=None, drafter=None, extend=None, answers=None):
        config = make_config(*small, *overrides)
        config.drafter = drafter or config.drafter
        earlier = read_earlier(extend) if extend else None
        answered = read_earlier(answers, answers_alone=True) if answers else None
        return on_tables(lambda: Recorder(config, out, depth, known, earlier, answered))

    return make


@pytest.fixture(scope="session")
def undisturbed(make_runner, tmp_path_factory):
    """The small run, two passes, finished in one go."""
    runner = make_runner(tmp_path_factory.mktemp("undisturbed"), "repetitions=2")
    runner.run()
    return runner
