"""Every bad input ends in one true sentence and its exit code: no traceback, no hang, nothing lost."""

import os
import signal
import sys
import time
from itertools import islice
from random import Random

import pytest
from bad_inputs import ALL, command_lines
from bad_inputs.case import Case, Outcome, complaint
from bad_inputs.child import Child

from gammatune.machine import cache_dir


@pytest.fixture(scope="module", autouse=True)
def heavy_imports():
    """Done once: they take longer than any answer may."""
    import gammatune.report.figures
    import gammatune.runs.runner  # noqa: F401


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{kind}-{case.name}") for kind, cases in ALL.items() for case in cases]
)
def test_a_bad_input_ends_in_one_true_sentence(case, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gammatune"])
    monkeypatch.setenv("GAMMATUNE_CACHE", str(cache_dir()))  # put back where a case sets another
    case.prepare(tmp_path)
    started = time.perf_counter()
    code, out, err = call(*case.words)
    # torture.py counts what takes over ten seconds; here other tests want the cores, too
    assert not complaint(case, Outcome(code, out, err, time.perf_counter() - started), limit_s=60.0)


@pytest.mark.parametrize(
    ("code", "err", "seconds", "told"),
    [
        (2, "gammatune: The gamma is wrong.\n", 0.1, ""),
        (1, "Traceback (most recent call last):\nKeyError: 3\n", 0.1, "traceback: KeyError: 3"),
        (2, "gammatune: The gamma is wrong.\n", 11.0, "took 11 s"),
        (0, "", 0.1, "exit code 0 instead of (2,): "),
        (2, "gammatune: The gamma is wrong\n", 0.1, "no sentence at the end: 'gammatune: The gamma is wrong'"),
        (2, "", 0.1, "no sentence at the end: ''"),
        (2, "gammatune: The gamma \x1b[2J is wrong.\n", 0.1, "control characters reach the terminal"),
        (2, "gammatune: The eta is wrong.\n", 0.1, "does not say 'gamma is': gammatune: The eta is wrong."),
    ],
)
def test_an_answer_that_is_not_good_is_complained_about(code, err, seconds, told):
    assert complaint(Case("one", ("run",), "gamma is"), Outcome(code, "", err, seconds)) == told


def test_a_child_that_hangs_or_crashes_is_counted(tmp_path):
    hung = Child((), tmp_path / "hung", lambda: time.sleep(60), limit_s=0.2).wait()
    assert hung.code == -signal.SIGKILL and hung.seconds < 5
    crashed = Child((), tmp_path / "crashed", lambda: os.kill(os.getpid(), signal.SIGSEGV)).wait()
    assert crashed.code == -signal.SIGSEGV
    failed = Child((), tmp_path / "failed", lambda: 1 / 0).wait()
    assert failed.code == 1 and "ZeroDivisionError" in failed.err


def test_random_command_lines_are_the_same_for_the_same_seed():
    first, again, other = (list(islice(command_lines.fuzz(Random(seed), 30), 30)) for seed in (1, 1, 2))
    assert [case.words for case in first] == [case.words for case in again] != [case.words for case in other]
