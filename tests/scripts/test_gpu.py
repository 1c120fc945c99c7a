"""scripts/gpu.sh: every command that it would run takes its arguments, and a step that was cut goes on."""

import argparse
import importlib
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from gammatune import cli
from gammatune.compose import compose_config, refuse_foresight

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu.sh"
STEPS = ("smoke", "prices", "record", "beside-transformers", "live", "train")


def call(*words, **environment):
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, env=environment)


def compose_words(words):
    GlobalHydra.instance().clear()
    return compose_config(words)


def read_command(words: list[str], monkeypatch) -> None:
    """Raises, or exits, where the command would not take its arguments."""
    match words:
        case ["run.py", *settings]:
            refuse_foresight(compose_words(settings))
        case ["-m", "gammatune", *rest]:
            options = argparse.Namespace(settings=[])
            cli.read_arguments(rest, options)
            compose_words(options.settings)
        case ["-m", "pytest", folder]:
            assert list((ROOT / folder).glob("test_*.py"))
        case [program, *rest]:
            path = ROOT / program
            monkeypatch.syspath_prepend(str(path.parent))
            options = importlib.import_module(path.stem).build_parser().parse_intermixed_args(rest)
            compose_words(getattr(options, "settings", []))


@pytest.mark.parametrize("step", STEPS)
def test_every_command_takes_its_arguments(step, tmp_path, monkeypatch):
    ended = call(step, DRY="1", OUT=str(tmp_path / "out"))
    assert ended.returncode == 0 and not (tmp_path / "out").exists()
    commands = [shlex.split(line) for line in ended.stdout.splitlines()]
    assert commands
    for python, *words in commands:
        assert python == "python"
        read_command(words, monkeypatch)


def test_an_unknown_step_is_answered_with_the_list_of_steps():
    ended = call("smok")
    assert ended.returncode == 2 and not ended.stdout and all(step in ended.stderr for step in STEPS)


def test_what_is_complete_is_not_done_again(tmp_path):
    """A stand-in for Python that fails at its second program, then no more."""
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncase $1 in benchmarks*) echo $1 | tee -a {calls}; test $(wc -l < {calls}) != 2;; esac\n")
    python.chmod(0o755)
    where = {"OUT": str(tmp_path / "out"), "PYTHON": str(python)}
    assert call("beside-transformers", **where).returncode == 1
    assert not (tmp_path / "out" / "overhead.txt").exists()
    assert call("beside-transformers", **where).returncode == 0
    assert calls.read_text().split() == ["benchmarks/vs_transformers.py", *["benchmarks/overhead.py"] * 2]
    command, printed = (tmp_path / "out" / "overhead.txt").read_text().splitlines()
    assert printed == "benchmarks/overhead.py" and printed in command, "the command comes with its result"


def test_no_command_begins_after_the_minutes_are_over(tmp_path):
    ended = call("record", OUT=str(tmp_path), PYTHON="/bin/false", MINUTES="0")
    assert ended.returncode == 1 and "gammatune record" in ended.stdout
