"""Calling a benchmark inside this process, on the pair that is made on the spot."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from hydra.core.global_hydra import GlobalHydra

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def load_benchmark():
    """load_benchmark(name) -> its module."""
    return importlib.import_module


@pytest.fixture
def call(capsys):
    """call(module, *words) -> Ended, on the tiny pair unless words name another."""
    before = transformers.logging.get_verbosity()

    def called(module: ModuleType, *words) -> Ended:
        GlobalHydra.instance().clear()
        capsys.readouterr()
        code = module.main(["model_pair=tiny-random", *map(str, words)])
        return Ended(code, *capsys.readouterr())

    yield called
    transformers.logging.set_verbosity(before)


@pytest.fixture
def corrupt(monkeypatch):
    """corrupt(gamma): from then on, our answers at that length have a wrong token at place 3."""
    from harness import Decoder

    answer = Decoder.answer

    def break_answers(gamma: int) -> None:
        def corrupted(self, prompt, policy, tokens):
            made = answer(self, prompt, policy, tokens)
            if getattr(policy, "gamma", 0) == gamma:
                made.output_ids[3] = (made.output_ids[3] + 7) % self.pair.vocab_size
            return made

        monkeypatch.setattr(Decoder, "answer", corrupted)

    return break_answers
