"""The GPU jobs, tried on the CPU: dry runs with real child processes, what they leave, and that nothing is done twice."""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "gpu"))

import job1_train_draft  # noqa: E402
import job2_live_specbench  # noqa: E402
import job3_cost_curves  # noqa: E402
import job4_vs_transformers  # noqa: E402
import job5_sampling  # noqa: E402
from jobs import Job, OutOfTimeError, choose_device, leave_out_places  # noqa: E402

from gammatune.errors import UserError  # noqa: E402

ALWAYS = {"job.json", "provenance.json", "commands.json", "README.md"}


@pytest.fixture
def call(tmp_path, capsys):
    """call(module, *words) -> (exit code, last line, stderr): a dry run with its folders under tmp_path."""

    def called(module, *words):
        places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        code = module.main(["--dry-run", *places, *words])
        ended = capsys.readouterr()
        return code, json.loads(ended.out.splitlines()[-1]) if ended.out else None, ended.err

    return called


@pytest.fixture
def job(tmp_path):
    """job(**options) -> an opened Job."""

    def opened(**options):
        (tmp_path / "out").mkdir(exist_ok=True)
        common = {"out": tmp_path / "out", "work": tmp_path / "work", "dry_run": True, "minutes": None, "settings": []}
        made = Job(argparse.Namespace(**common | options))
        made.open()
        return made

    return opened


def files_of(folder: Path) -> dict[str, int]:
    """Name to time of change, of everything but the lock."""
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and f.name != "lock"}


def read(path: Path):
    return json.loads(path.read_text())


def run_twice(call, module, tmp_path, *words) -> set[str]:
    """What a dry run leaves; a second one must leave all of it alone."""
    code, last, _ = call(module, *words)
    assert code == 0 and last == {"out": str(tmp_path / "out"), "status": "ok", "worked": True}
    before = files_of(tmp_path / "out")
    code, last, _ = call(module, *words)
    assert code == 0 and last["status"] == "ok" and not last["worked"] and files_of(tmp_path / "out") == before
    assert before.keys() >= ALWAYS and not list((tmp_path / "work").glob("*.partial"))
    provenance = read(tmp_path / "out" / "provenance.json")["sessions"]
    assert len(provenance) == 1 and provenance[0]["device"] and provenance[0]["packages"]["torch"]
    assert "| `out` |" in (tmp_path / "out" / "README.md").read_text()
    return set(before) - ALWAYS


def test_training_runs_every_step_and_does_not_ship_what_is_no_better(call, tmp_path):
    shipped = job1_train_draft.SHIPPED.read_bytes()
    left = run_twice(call, job1_train_draft, tmp_path, "--ship")
    tables = {f"comparison/{name}" for name in ("mean_accepted_tokens.csv", "mean_accepted_tokens.md", "reliability.csv")}
    assert left == {"teacher.json", "evaluation.json", "comparison/verdict.json", *tables}
    verdict = read(tmp_path / "out" / "comparison" / "verdict.json")
    assert not verdict["better"] and verdict["sentence"].startswith("Do not ship: ")
    commands = read(tmp_path / "out" / "commands.json")
    assert list(commands) == ["corpus", "teacher", "train"] and "--steps train evaluate" in commands["train"]
    assert job1_train_draft.SHIPPED.read_bytes() == shipped


def test_a_better_draft_is_told_with_its_weakest_task():
    tasks = {"overall": 1.6, "qa": 1.6, "rag": 1.4}
    sides = [{"tasks": {task: {"mean_emitted": mean + more} for task, mean in tasks.items()}} for more in (0.0, 0.5)]
    verdict = job1_train_draft.judge(job1_train_draft.tabulate(*sides))
    assert verdict["better"] and verdict["goal_met"]
    assert verdict["sentence"].startswith(
        "Ship: 2.100 mean accepted tokens against 1.600; the weakest task is rag with 1.900"
    )
    assert not job1_train_draft.judge(job1_train_draft.tabulate(*reversed(sides)))["better"]


def test_rounds_go_on_until_the_tokens_are_there(tmp_path):
    assert job1_train_draft.count_answers(tmp_path) == (0, 0)
    for name, tokens in (("train-001-chat", 300), ("train-001-rag", 100), ("dev-000-rag", 50)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"new_tokens": tokens}))
    assert job1_train_draft.count_answers(tmp_path) == (1, 400)
    assert job1_train_draft.plan_rounds(0, 0, 10_000) == job1_train_draft.FIRST_ROUNDS
    assert job1_train_draft.plan_rounds(4, 1600, 10_000) == 25
    assert job1_train_draft.plan_rounds(24, 9_999, 10_000) == 25


def test_live_runs_keep_what_tables_are_made_from(call, tmp_path):
    left = run_twice(call, job2_live_specbench, tmp_path)
    for runtime in ("eager", "compiled"):
        run = read(tmp_path / "out" / runtime / "run.json")
        labels = [arm["label"] for arm in run["arms"]]
        assert run["runtime"]["name"] == runtime and {"ar", "fixed-3", "gammatune_plus-1", "hf_heuristic-3"} <= set(labels)
        assert f"{runtime}/acceptance.parquet" in left and f"{runtime}/report/tables/details.md" in left
        assert sum(name.startswith(f"{runtime}/") and name.endswith("/turns.jsonl") for name in left) == len(labels)
    assert "machine.jsonl" in left and not any("figures" in name or name.endswith("lock") for name in left)


def test_sampling_samples(call, tmp_path):
    left = run_twice(call, job5_sampling, tmp_path, "--temperature", "0.7", "--runtimes", "compiled")
    run = read(tmp_path / "out" / "compiled" / "run.json")
    assert run["decode"]["temperature"] == 0.7 and len(run["arms"]) == 6
    assert not any(name.endswith(".parquet") for name in left)


def test_prices_come_with_the_bandwidth_they_reach(call, tmp_path):
    left = run_twice(call, job3_cost_curves, tmp_path)
    assert {"costs/tiny-random-eager.json", "costs/tiny-random-compiled.json", "achieved/achieved.md"} <= left
    table, bandwidth = pd.read_csv(tmp_path / "out/achieved/achieved.csv"), read(tmp_path / "out/bandwidth.json")
    assert set(table["runtime"]) == {"eager", "compiled"} and set(table["k"]) == {1, 2} and (table["gbps"] > 0).all()
    assert table["of_copy"].to_list() == pytest.approx((table["gbps"] / bandwidth["copy_gbps"]).to_list())
    # 3 layers of 64 x 64 (4 heads, 2 for keys) and 64 x 128 matrices, 7 norms, an LM head of 260 rows; a cache of 16 tokens
    step = table[(table["model"] == "target") & (table["context"] == 16) & (table["k"] == 1)].iloc[0]
    weights = 3 * (2 * 64 * 16 * (4 + 2) + 3 * 64 * 128) + (7 + 260) * 64
    assert step["gbps"] * step["ms"] * 1e6 == pytest.approx(4 * (weights + 2 * 3 * 2 * 16 * 16))


def test_a_pair_that_cannot_be_measured_is_left_out_with_a_sentence(job, tmp_path):
    quantised = tmp_path / "quantised.json"
    opened = job(dry_run=False, device="cpu", repeats=1)
    job3_cost_curves.measure_pair(opened, ("llama-3.1-8b-70b", "eager"), quantised)
    assert read(quantised) == {"skipped": "llama-3.1-8b-70b: int8 needs real weights, and these are random."}
    opened.options.settings, large = ["model_pair.target.quantization=null"], tmp_path / "large.json"
    job3_cost_curves.measure_pair(opened, ("llama-3.1-8b-70b", "eager"), large)
    assert "GiB are free" in read(large)["skipped"]


def test_the_comparison_with_transformers_is_kept(call, tmp_path):
    left = run_twice(call, job4_vs_transformers, tmp_path)
    assert left == {"vs_transformers/result.json", "vs_transformers/table.md", "machine.jsonl"}
    result = read(tmp_path / "out" / "vs_transformers" / "result.json")
    assert result["exit_code"] == 0 and result["pair"] == "tiny-random"
    assert "transformers" in (tmp_path / "out" / "vs_transformers" / "table.md").read_text()


def test_minutes_that_are_over_leave_the_rest_for_the_next_call(call, tmp_path):
    code, last, sentence = call(job1_train_draft, "--minutes", "1e-9")
    assert code == 0 and last["status"] == "unfinished" and "before teacher.json: the same command continues." in sentence
    code, last, _ = call(job1_train_draft)
    assert code == 0 and last["status"] == "ok"


def test_a_child_that_takes_too_long_is_stopped(job):
    opened = job(minutes=0.02)
    with pytest.raises(OutOfTimeError, match="The 0.02 minutes are over during sleeping"):
        opened.run("sleeping", ["-c", "import time; time.sleep(60)"])


def test_a_product_appears_whole_or_not_at_all(job):
    opened = job()

    def break_off(path):
        path.mkdir()
        (path / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened.step("product", break_off)
    assert not (opened.out / "product").exists()
    opened.step("product", lambda path: path.write_text("whole"))
    opened.step("product", lambda path: pytest.fail("done twice"))
    assert (opened.out / "product").read_text() == "whole"


def test_a_child_that_fails_is_one_sentence(job):
    opened = job()
    with pytest.raises(UserError, match=r"The step broken ended with exit code 3 \(no such thing\): see the logs"):
        opened.run("broken", ["-c", "import sys; print('no such thing.', file=sys.stderr); sys.exit(3)"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--minutes", "0"], "--minutes 0 must be above 0."),
        (["--settings-typo"], "unrecognized arguments"),
        (["--pairs", "vicuna"], "invalid choice"),
    ],
)
def test_wrong_words_are_refused(call, capsys, words, sentence):
    try:
        code, _, err = call(job3_cost_curves, *words)
    except SystemExit as ended:
        code, err = ended.code, capsys.readouterr().err
    assert code == 2 and sentence in err


def test_results_of_other_settings_are_not_mixed(call):
    assert call(job1_train_draft)[0] == 0
    code, _, err = call(job1_train_draft, "--tokens", "5")
    assert code == 2 and "holds results of other settings" in err and err.count("\n") == 1


def test_without_a_gpu_the_dry_run_is_named(tmp_path, capsys):
    try:
        choose_device("cuda")
    except UserError:
        places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        assert job4_vs_transformers.main(places) == 2
        assert capsys.readouterr().err.strip().endswith("To try the job without one: --dry-run.")
    else:
        pytest.skip("there is a GPU")


def test_the_shown_command_names_no_folder():
    assert leave_out_places(["job.py", "--out", "here", "--ship", "--work", "there"]) == ["job.py", "--ship"]
