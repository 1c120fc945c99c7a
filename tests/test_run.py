"""The main job from its arguments to its last line, in this process wherever that shows the same."""

import json
import os
import runpy
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from gammatune.runs.runner import Runner

ROOT = Path(__file__).parents[1]
KEYS = ["policy", "speedup", "mean_accepted_tokens", "acceptance_rate", "exact"]
ARMS = ("policy=[fixed,gammatune]",)


def only_run(results: Path) -> Path:
    (run,) = results.glob("*/run.json")
    return run.parent


def test_a_run_ends_with_its_table_and_one_line_for_machines(call_run, small, tmp_path):
    ended = call_run(*small, *ARMS, f"results={tmp_path / 'r'}")
    assert ended.code == 0
    last, run = ended.last_line, only_run(tmp_path / "r")
    assert (list(last), last["run_dir"], last["status"]) == (["run_dir", "status", "arms"], str(run), "ok")
    assert [arm["policy"] for arm in last["arms"]] == ["ar", "fixed-5", "gammatune-3"]
    for arm in last["arms"]:
        assert list(arm) == KEYS
        assert arm["speedup"] is None and arm["exact"] is True
        assert isinstance(arm["mean_accepted_tokens"], float) and arm["mean_accepted_tokens"] >= 1
    assert last["arms"][0]["acceptance_rate"] is None and 0 < last["arms"][1]["acceptance_rate"] < 1
    assert "\nGammaTune " in ended.out and "The weights are random, so no speedup is given." in ended.out
    named = [Path(line) for line in ended.out.splitlines() if line.endswith((".md", ".png"))]
    assert named and all(path.stat().st_size for path in named)


def test_starting_again_decodes_nothing_and_reports_the_same(call_run, small, tmp_path, on_answer):
    arguments = (*small, "policy=fixed", f"results={tmp_path / 'r'}")
    first = call_run(*arguments)
    on_answer(lambda made, policy: pytest.fail("decoded again"))
    assert call_run(*arguments).last_line == first.last_line


def test_a_plan_is_printed_and_nothing_runs(call_run, small, tmp_path):
    ended = call_run(*small, *ARMS, "plan=true", f"results={tmp_path / 'r'}")
    assert (ended.code, ended.last_line["status"], ended.last_line["arms"]) == (0, "planned", [])
    assert [line.split()[0] for line in ended.out.splitlines()[1:-1]] == ["ar", "fixed-5", "gammatune-3"]
    assert not (tmp_path / "r").exists()


def second_answer_of(name, action):
    seen = count(1)

    def on_each(made, policy):
        if type(policy).__name__ == name and next(seen) == 2:
            action(made)

    return on_each


def spoil(made):
    made.output_ids[0] += 1


def fail(made):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(("action", "reason", "exact"), [(spoil, "wrong_output", False), (fail, "error", None)])
def test_a_failed_arm_has_no_numbers_and_fails_the_run(call_run, small, on_answer, tmp_path, action, reason, exact):
    on_answer(second_answer_of("Fixed", action))
    ended = call_run(*small, *ARMS, f"results={tmp_path / 'r'}")
    assert (ended.code, ended.last_line["status"]) == (2, "failed")
    arms = {arm["policy"]: arm for arm in ended.last_line["arms"]}
    assert arms["fixed-5"] == dict.fromkeys(KEYS) | {"policy": "fixed-5", "exact": exact}
    assert arms["gammatune-3"]["exact"] is True and arms["gammatune-3"]["mean_accepted_tokens"] > 1
    assert ended.err.splitlines()[-1].startswith(f"gammatune: 1 arm left out: fixed-5 ({reason}): done.json")


def test_without_a_baseline_there_is_nothing_to_report(call_run, small, on_answer, tmp_path):
    on_answer(second_answer_of("Autoregressive", fail))
    ended = call_run(*small, *ARMS, f"results={tmp_path / 'r'}")
    assert (ended.code, ended.last_line["status"], ended.last_line["arms"]) == (2, "failed", [])
    assert "no finished arm to report on" in ended.err.splitlines()[-1]


def test_an_interrupt_says_how_to_go_on(call_run, small, on_answer, tmp_path):
    def interrupt(made, policy):
        raise KeyboardInterrupt

    on_answer(interrupt)
    ended = call_run("-m", *small, "policy=fixed", "seed=1,2", f"results={tmp_path / 'r'}")
    assert ended.code == 130
    (run,) = (tmp_path / "r").glob("tiny-random-*")
    sentence = f"Interrupted; complete answers are kept in {run}, and the same command continues from there."
    assert ended.err.splitlines()[-1] == f"gammatune: {sentence}"


def test_results_that_cannot_be_written_are_an_error(call_run, small, tmp_path):
    (tmp_path / "file").write_text("")
    ended = call_run(*small, f"results={tmp_path / 'file'}")
    assert ended.code == 2
    assert ended.err.startswith(f"gammatune: Cannot write to {tmp_path / 'file'}/tiny-random-specbench-")
    assert ended.err.endswith(" (Not a directory): choose another folder with results=FOLDER.\n")


def test_a_full_disk_is_an_error(call_run, small, on_answer, tmp_path):
    def fill_disk(made, policy):
        for folder in (tmp_path / "r").glob("*/fixed*"):
            (folder / "turns.jsonl").unlink(missing_ok=True)
            (folder / "turns.jsonl").symlink_to("/dev/full")

    on_answer(fill_disk)
    ended = call_run(*small, "policy=fixed", f"results={tmp_path / 'r'}")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("gammatune: Cannot write the results (No space left on device): free some ")


def test_a_sweep_runs_every_value_and_leaves_the_folder_clean(call_run, small, tmp_path):
    ended = call_run("--multirun", *small, "policy=fixed", "policy.fixed.gamma=2,4", f"results={tmp_path / 'r'}")
    assert ended.code == 0
    lines = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    assert [line["arms"][1]["policy"] for line in lines] == ["fixed-2", "fixed-4"]
    assert len({line["run_dir"] for line in lines}) == 2
    assert not any(Path.cwd().iterdir())


def test_a_failed_job_fails_its_sweep_and_the_others_still_run(call_run, small, tmp_path):
    ended = call_run("--multirun", *small, "policy=fixed", "policy.fixed.gamma=-1,4", f"results={tmp_path / 'r'}")
    assert ended.code == 2
    assert ended.err.count("gammatune: Fixed.gamma=-1 is out of range") == 1 and "Traceback" not in ended.err
    assert ended.last_line["arms"][1]["policy"] == "fixed-4"


def test_the_demo_runs(call_run, tmp_path):
    ended = call_run(
        "experiment=demo",
        "model_pair=tiny-random",
        "tasks.include=[qa,math_reasoning,translation]",
        "tasks.limit=1",
        "decode.max_new_tokens=8",
        f"results={tmp_path / 'r'}",
    )
    assert (ended.code, ended.last_line["status"]) == (0, "ok")
    assert [arm["policy"] for arm in ended.last_line["arms"]] == ["ar", "fixed-5", "gammatune-3", "gammatune_plus-3"]


def test_the_paper_grid_runs(make_config, small, tmp_path):
    short = ("decode.max_new_tokens=4", "tasks.limit=1", f"results={tmp_path / 'r'}")
    runner = Runner(make_config("experiment=paper_grid", *small, *short))
    runner.run()
    assert {cell.read_done()["status"] for cell in runner.folder.cells} == {"ok"}
    assert len(runner.folder.cells) == 1 + 3 * 12


def test_a_pair_of_local_checkpoints_has_speedups(call_run, question_file, tmp_path):
    make = runpy.run_path(str(ROOT / "tests" / "models" / "tiny_checkpoints.py"))["checkpoint_maker"](tmp_path)
    layers = {"target": 3, "draft": 2}
    target, draft = (make(name, num_hidden_layers=n, max_position_embeddings=512) for name, n in layers.items())
    ended = call_run(
        "model_pair=vicuna-68m-7b",
        f"model_pair.target.path={target}",
        f"model_pair.draft.path={draft}",
        *ARMS,
        "tasks=specbench",
        f"tasks.path={question_file}",
        "tasks.checksum=null",
        "decode.max_new_tokens=12",
        f"results={tmp_path / 'r'}",
    )
    assert (ended.code, ended.last_line["status"]) == (0, "ok")
    speedups = {arm["policy"]: arm["speedup"] for arm in ended.last_line["arms"]}
    assert speedups["ar"] == 1.0
    assert all(isinstance(speedup, float) and speedup > 0 for speedup in speedups.values())
    tables = [table.read_text() for table in (only_run(tmp_path / "r") / "report" / "tables").glob("*.md")]
    assert any("GammaTune" in table and f"{speedups['fixed-5']:.2f}" in table for table in tables)


def test_a_pair_without_its_checkpoints_ends_in_one_sentence(tmp_path):
    """In a process of its own: the hub's client reads its environment when it is imported."""
    alone = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "run.py", "model_pair=vicuna-68m-7b", f"results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "double7/vicuna-68m" in done.stderr and "model_pair.target.path=/folder" in done.stderr
    assert done.stderr.startswith("gammatune: lmsys/vicuna-7b-v1.3 is not on this machine") and done.stderr.count("\n") == 1
    assert "model_pair.target.path=/folder" in done.stderr
