"""Intervals that hold what they promise, and warnings that come when they should and not otherwise."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from stored import Recipe, store_run

from gammatune.report import notes, statistics
from gammatune.runs.store import read_run
from gammatune.studies import bootstrap

QUIET = Recipe(arms=("ar", "fixed-5"), tasks=("qa", "rag"), questions=8, repetitions=2)


def questions_of(speeds, task="qa"):
    return pd.DataFrame({"task": task, "question_id": range(len(speeds)), "tokens_per_second": speeds, "repetition": 0})


def draw_pair(rng, count, hardness):
    """Speeds of an arm and its baseline: the questions share their hardness, the true speedup is 1.5."""
    shared = rng.lognormal(0, hardness, count)
    return 15 * shared * rng.normal(1, 0.1, count), 10 * shared * rng.normal(1, 0.1, count)


def test_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        arm, base = draw_pair(rng, 40, 0.3)
        low, high = statistics.speedup_interval(questions_of(arm), questions_of(base))
        hits += low <= 1.5 <= high
    # 95 % of 200 is 190; a percentile interval of 40 questions is a little short. Binomial bounds at about 1e-4.
    assert 173 <= hits <= 199


def test_paired_interval_is_narrower_than_unpaired():
    arm, base = draw_pair(np.random.default_rng(1), 60, 0.5)
    low, high = statistics.speedup_interval(questions_of(arm), questions_of(base))
    unpaired = stats.bootstrap(
        (arm, base),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert high - low < 0.5 * (unpaired.high - unpaired.low)


def test_questions_are_resampled_within_their_task():
    """Two tasks without any spread of their own leave nothing to be unsure about, however far apart they are."""
    arm = pd.concat([questions_of([10.0] * 5, "qa"), questions_of([90.0] * 5, "rag")])
    base = pd.concat([questions_of([10.0] * 5, "qa"), questions_of([10.0] * 5, "rag")])
    assert statistics.speedup_interval(arm, base) == pytest.approx((5.0, 5.0))


def test_interval_is_the_same_every_time():
    arm, base = (questions_of(speeds) for speeds in draw_pair(np.random.default_rng(2), 12, 0.3))
    assert statistics.speedup_interval(arm, base) == statistics.speedup_interval(arm, base)


def test_one_question_has_no_interval():
    low, high = statistics.speedup_interval(questions_of([12.0]), questions_of([10.0]))
    assert math.isnan(low) and math.isnan(high)


def test_a_task_of_one_question_does_not_spoil_the_others():
    arm = pd.concat([questions_of([12.0, 13.0, 17.0]), questions_of([9.0], "rag")])
    base = pd.concat([questions_of([10.0, 10.0, 10.0]), questions_of([10.0], "rag")])
    low, high = statistics.speedup_interval(arm, base)
    assert (12 * 3 + 9) / 40 <= low < high <= (17 * 3 + 9) / 40


def test_equal_arms_give_a_point():
    speeds = questions_of([12.0, 13.0, 17.0])
    assert statistics.speedup_interval(speeds, speeds) == (1.0, 1.0)


def test_repetition_interval_by_hand():
    """1.4 and 1.6: mean 1.5, standard error 0.1, Student t of one degree of freedom 12.706."""
    low, high = statistics.repetition_interval([1.4, 1.6])
    assert (low, high) == pytest.approx((1.5 - 1.2706, 1.5 + 1.2706), abs=1e-3)
    assert all(math.isnan(bound) for bound in statistics.repetition_interval([1.4]))
    assert statistics.repetition_interval([1.5, 1.5]) == (1.5, 1.5)


def test_a_steady_run_gives_no_warning(tmp_path):
    assert notes.stability_warnings(read_run(store_run(tmp_path / "run", QUIET))) == []


def warnings_of(tmp_path, **changes):
    return notes.stability_warnings(read_run(store_run(tmp_path / "run", Recipe(**(vars(QUIET) | changes)))))


def test_repetitions_far_apart_are_named(tmp_path):
    found = warnings_of(tmp_path, slow=(1.0, 1.3))
    assert any(sentence.startswith("fixed-5: tokens/s differed by 26%") for sentence in found)


def test_drift_of_the_baseline_is_named(tmp_path):
    found = warnings_of(tmp_path, slow=(1.0, 1.3))
    assert any(sentence.startswith("ar: decoding became 26% slower") for sentence in found)


def sampled_run(tmp_path, samples: list[dict], cores: int = 8, tail: str = ""):
    path = store_run(tmp_path / "run", Recipe(**(vars(QUIET) | {"provenance": {"cores": cores}})))
    (path / "machine.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples) + tail)
    return notes.stability_warnings(read_run(path))


@pytest.mark.parametrize(("loads", "expected"), [([2, 11, 12], ["load 11.0 on 8 cores"]), ([2, 9, 30], []), ([], [])])
def test_a_shared_machine_is_named(tmp_path, loads, expected):
    found = sampled_run(tmp_path, [{"time": i, "load": load, "cpu_mhz": None} for i, load in enumerate(loads)])
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_a_throttled_gpu_is_named(tmp_path):
    samples = [{"time": i, "load": 1.0, "sm_mhz": 1000 if i < 3 else 1900, "sm_max_mhz": 2000} for i in range(10)]
    assert sampled_run(tmp_path, samples) == ["The GPU ran under 75% of its clock in 30% of the samples."]


def test_a_half_written_last_sample_is_left_out(tmp_path):
    assert sampled_run(tmp_path, [{"time": 0, "load": 1.0}], tail='{"time": 1, "lo') == []
