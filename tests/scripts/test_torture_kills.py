"""The trials themselves are run by hand; here, that they happen and that a difference is seen."""

import os
from functools import partial

import pytest
import torture_kills


@pytest.mark.slow
def test_a_run_and_a_recording_are_killed_and_come_out_equal(tmp_path):
    trials = torture_kills.kill_trials(tmp_path, 2, 60, seed=3)
    assert [(trial.kind, trial.finished, trial.differed) for trial in trials] == [("run", True, ""), ("record", True, "")]
    assert sum(trial.kills for trial in trials) > 0


def test_a_difference_and_a_bad_end_are_seen(tmp_path):
    (tmp_path / ".left.1.part").touch()
    left = torture_kills.try_once("record", partial(os.listdir, tmp_path), [0.0], {})
    assert (left.finished, left.differed) == (True, ".left.1.part")
    lost = torture_kills.try_once("record", partial(os.listdir, tmp_path / "none"), [], {})
    assert lost.differed == "it did not end well"
