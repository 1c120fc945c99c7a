"""The harness, and all benchmarks but that beside transformers: counted bytes, printed figures, what is outside forwards."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from gammatune.compose import compose_config
from gammatune.files import read_json, write_json
from gammatune.models.pair import load_pair
from gammatune.policies.fixed import Fixed

ROOT = Path(__file__).parents[2]
HIDDEN, MLP, HEADS, KV_HEADS, SIZE, VOCAB = 64, 128, 4, 2, 16, 260
LAYER = 2 * HIDDEN * SIZE * (HEADS + KV_HEADS) + 3 * HIDDEN * MLP


@pytest.fixture
def bandwidth(load_benchmark):
    return load_benchmark("bandwidth")


@pytest.fixture
def roofline(load_benchmark):
    return load_benchmark("roofline")


@pytest.fixture
def overhead(load_benchmark):
    return load_benchmark("overhead")


def load_tiny(*settings, dtype: str | None = None):
    return load_pair(compose_config(["model_pair=tiny-random", *settings]).model_pair, dtype=dtype)


def test_bandwidth_is_that_of_the_fastest_reader(bandwidth):
    size = {arm.labels["operation"]: arm.labels["gigabytes"] for arm in bandwidth.make_arms(torch.device("cpu"), mib=4)}
    assert size == {"sum": 2**22 / 1e9, "max": 2**22 / 1e9, "matrix times vector": 2**22 / 1e9, "copy": 2**23 / 1e9}
    took = {"sum": (4, 1, 2), "max": (8, 9, 8), "matrix times vector": (3, 3, 3), "copy": (1, 1, 1)}
    rows = [(name, size[name], seconds) for name, calls in took.items() for seconds in calls]
    found = bandwidth.find_bandwidth(pd.DataFrame(rows, columns=["operation", "gigabytes", "seconds"]))
    assert (found.read_by, found.read_gbps, found.copy_gbps) == ("sum", size["sum"] / 2, size["copy"])


def test_benchmarks_run_from_the_command_line_of_any_folder(tmp_path):
    words = ["--copy-mib", "2", "runtime.threads=1", "--repeats", "2"]
    command = [sys.executable, str(ROOT / "benchmarks/bandwidth.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["threads"] == 1 and result["read_gbps"] > 0
    assert done.stdout.startswith(result["device"]) and result["processor"] in done.stdout, "the table names its machine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", ["true", "false"])
def test_the_floor_counts_every_matrix_once_and_the_cache(roofline, tied):
    tie = [f"model_pair.{role}.shape.tie_word_embeddings={tied}" for role in ("target", "draft")]
    pair = load_tiny(*tie)
    floor = roofline.count_floor(pair.target, torch.float32, context=100)
    assert floor.weights == 4 * (3 * LAYER + VOCAB * HIDDEN)
    assert floor.cache == 4 * 3 * 2 * KV_HEADS * SIZE * 100
    assert floor.ms(gbps=2.0) == pytest.approx((floor.weights + floor.cache) / 2e9 * 1e3)


def test_the_floor_of_a_reduced_vocabulary_is_lower_by_its_rows(roofline):
    whole, reduced = (load_tiny(f"model_pair.draft.vocabulary={size}").draft for size in ("null", 100))
    floors = [roofline.count_floor(draft, torch.float32, context=10) for draft in (whole, reduced)]
    assert floors[0].weights - floors[1].weights == 4 * (VOCAB - 100) * HIDDEN


def test_roofline_holds_every_step_against_the_bandwidth(roofline, call):
    ended = call(roofline, "--context", 32, "--repeats", 3, "--copy-mib", 2)
    result, kinds = ended.result, {("target", n) for n in (1, 2, 6, 16)} | {("draft", 1)}
    assert ended.code == 0
    found = [(row["model"], row["tokens"], row["dtype"], row["runtime"]) for row in result["rows"]]
    assert len(set(found)) == len(found)
    for dtype in ("fp32", "bf16"):
        for runtime in roofline.build_decoders(load_tiny(dtype=dtype)):
            assert {row[:2] for row in found if row[2:] == (dtype, runtime)} == kinds
    for row in result["rows"]:
        assert 0 < row["low"] <= row["ms"] <= row["high"]
        assert 0 < row["share"] < 1
        assert row["gbps"] == pytest.approx(row["share"] * result["bandwidth_gbps"], rel=1e-3, abs=1e-4)
    plain = [row for row in result["rows"] if (row["model"], row["tokens"]) == ("target", 1)]
    best = min(plain, key=lambda row: row["ms"])
    assert (result["runtime"], result["dtype"]) == (best["runtime"], best["dtype"])
    assert result["target_share"] == pytest.approx(best["share"], abs=1e-5)
    assert result["copy_gbps"] > 0


def test_steps_leave_the_caches_as_they_were(roofline):
    for decoder in roofline.build_decoders(load_tiny()).values():
        arm = roofline.make_arm(decoder, "fp32", 6, list(range(4, 28)), context=8)
        assert set(arm.work(None)) == {"target", "draft"}
        assert [model.length for model in decoder.models.values()] == [8, 8]


def test_overhead_has_a_share_and_host_reads_for_every_arm(overhead, call):
    ended = call(overhead, "--questions", 2, "--tokens", 8, "--repeats", 1)
    rows = {(row["policy"], row["runtime"]): row for row in ended.result["rows"]}
    assert ended.code == 0
    assert len(rows) == 4 * len(overhead.build_decoders(load_tiny()))
    for row in rows.values():
        assert 0 < row["low"] <= row["share_outside"] <= row["high"] < 1
        assert row["outside_ms"] < row["round_ms"]
    assert rows["autoregressive", "eager"]["reads_per_round"] == 1
    assert rows["gammatune_plus", "eager"]["reads_per_round"] > 1
    assert ended.result["eager_fixed_5_share"] == pytest.approx(rows["fixed_5", "eager"]["share_outside"], abs=1e-5)
    assert ended.result["dtype"] == "float32"


def test_a_slow_policy_counts_outside_and_a_slow_forward_inside(overhead):
    class Slow(Fixed):
        def plan(self):
            time.sleep(0.03)
            return super().plan()

    def share(policy, pause: float) -> float:
        decoder = overhead.build_decoders(load_tiny())["eager"]
        forward = decoder.models["target"].forward
        decoder.models["target"].forward = lambda *args, **options: (time.sleep(pause), forward(*args, **options))[1]
        return overhead.Watched(decoder).answer(list(range(4, 40)), policy, tokens=8)["share_outside"]

    assert share(Slow(gamma=1), pause=0) > 0.5
    assert share(Fixed(gamma=1), pause=0.03) < 0.3


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("bandwidth", ("--copy-mib", 0), "--copy-mib 0 must be 1 or more."),
        ("bandwidth", ("--copy-mib", 10**8), "--copy-mib 100000000 takes 195312.5 GiB for two buffers"),
        ("roofline", ("--context", 512), "--context 512 leaves no place for a block of 16 tokens"),
        ("roofline", ("--repeats", 1), "--repeats 1 must be 2 or more."),
        ("overhead", ("runtime.dtype=fp8",), "runtime.dtype=fp8 is not known"),
        ("overhead", ("runtime.dtyp=fp32",), "runtime has no setting dtyp"),
    ],
)
def test_bad_input_is_one_sentence(load_benchmark, call, name, words, sentence):
    ended = call(load_benchmark(name), *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(sentence)
    assert ended.err.count("\n") == 1


def test_arms_take_turns_at_being_first(load_benchmark):
    harness, calls = load_benchmark("harness"), []
    arms = [
        harness.Arm({"arm": name}, lambda given, name=name: {"given": calls.append((name, given)) or given})
        for name in "abc"
    ]
    measured = harness.measure(arms, [10, 20], torch.device("cpu"), repeats=2)
    orders = [calls[start : start + 3] for start in range(0, 15, 3)]
    assert [[name for name, _ in order] for order in orders[1:]] == [list(order) for order in ("abc", "bca", "cab", "abc")]
    assert [{given for _, given in order} for order in orders] == [{10}, {10}, {20}, {10}, {20}]
    assert len(measured) == 12, "the first call of each arm is left out"
    assert measured.groupby(["arm", "input", "repeat"])["given"].first().tolist() == [10, 10, 20, 20] * 3
    assert (measured["seconds"] > 0).all()


def test_tables_hold_medians_over_repeats_then_inputs(load_benchmark):
    harness = load_benchmark("harness")
    rows = [("x", i, r, ms) for i, found in enumerate([(2, 4, 9), (1, 1, 1), (6, 8, 7)]) for r, ms in enumerate(found)]
    measured = pd.DataFrame(rows, columns=["arm", "input", "repeat", "ms"])
    (row,) = harness.tabulate(measured, ["arm"], ["ms"], "ms").to_dict("records")
    assert row == {"arm": "x", "ms": 4.0, "low": 1.0, "high": 7.0}


def test_the_interval_of_a_median_narrows_with_more_questions(load_benchmark):
    interval = load_benchmark("harness").median_interval
    few, many = interval([1.0, 2.0, 3.0]), interval([1.0, 2.0, 3.0] * 20)
    assert few == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert many["median"] == 2.0 and many["high"] - many["low"] <= 1.0


def test_modelled_speeds_stand_beside_the_clock(load_benchmark, capsys, tmp_path):
    """A stored run, whose prices were measured on the same machine but on another day."""
    folder, benchmark = ROOT / "results" / "reference", load_benchmark("modelled_speed")
    run, prices = folder / "smollm2-draft-135m-demo-2828959329", folder / "smollm2-draft-135m-specbench" / "prices.json"
    assert benchmark.main(["--run", str(run), "--prices", str(prices)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert len(rows) == 16
    assert all(0.9 < row["low"] <= row["ratio"] <= row["high"] < 1.02 for row in rows)
    for row in rows:
        assert row["modelled_speedup"] == pytest.approx(row["live_speedup"], rel=0.05)
    other = folder / "speed-2-core-xeon" / "prices-compiled-bf16.json"
    assert benchmark.main(["--run", str(run), "--prices", str(other)]) == 2
    assert "differ in weights, dtype, runtime" in capsys.readouterr().err
    slower = read_json(prices, "measure again") | {"runtime": {"name": "eager", "threads": 1}}
    write_json(tmp_path / "prices.json", slower)
    assert benchmark.main(["--run", str(run), "--prices", str(tmp_path / "prices.json")]) == 2
    assert "differ in threads: measure" in capsys.readouterr().err


def test_replay_throughput_tries_a_thousand_settings_of_each(load_benchmark):
    benchmark = load_benchmark("replay_throughput")
    grids = {name: benchmark.build_grid(name) for name in benchmark.GRIDS}
    assert {name: len({str(policy) for policy in grid}) for name, grid in grids.items()} == dict.fromkeys(grids, 1000)
