"""Every bad input ends in one true sentence and its exit code: no traceback, no hang, nothing lost."""

import sys
import time

import pytest
from bad_inputs import ALL
from bad_inputs.case import Outcome, complaint


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{kind}-{case.name}") for kind, cases in ALL.items() for case in cases]
)
def test_a_bad_input_ends_in_one_true_sentence(case, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gammatune"])
    case.prepare(tmp_path)
    started = time.perf_counter()
    code, out, err = call(*case.words)
    assert not complaint(case, Outcome(code, out, err, time.perf_counter() - started))
