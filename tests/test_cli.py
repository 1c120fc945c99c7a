"""The verbs as a user runs them, in a process where torch cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from report.stored import Recipe, change_done, store_run

from gammatune import cli

ROOT = Path(__file__).parents[1]
SMALL = Recipe(questions=2, repetitions=1)
BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked here")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    store_run(folder / "reference" / "shipped", SMALL)
    store_run(folder / "runs" / "mine", SMALL)
    return folder


@pytest.fixture
def run_cli(tmp_path):
    """Call `python -m gammatune` without torch."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(tmp_path / "block"), str(ROOT)])

    def call(*words, **changes):
        return subprocess.run(
            [sys.executable, *(changes.pop("start", ["-m", "gammatune"])), *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path} | changes,
        )

    return call


def test_the_block_works(run_cli):
    assert "torch is blocked here" in run_cli(start=["-c", "import torch"]).stderr


def test_report_prints_a_table_and_writes_files(run_cli, results, tmp_path):
    done = run_cli("report", results / "runs" / "mine", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "GammaTune+" in done.stdout and "speedup" in done.stdout
    assert (tmp_path / "out" / "tables" / "details.csv").is_file()
    assert (tmp_path / "out" / "figures" / "speedup_by_task.svg").is_file()


def test_paper_tables_rebuilds_reference_and_own_runs(run_cli, results, tmp_path):
    folders = ["--reference", results / "reference", "--runs", results / "runs", "--out", tmp_path / "out"]
    done = run_cli("paper-tables", *folders)
    assert done.returncode == 0, done.stderr
    for name in ("shipped", "mine"):
        assert (tmp_path / "out" / "tables" / name / "speedup.tex").is_file()
        assert (tmp_path / "out" / "figures" / name / "accepted_lengths.png").is_file()


def test_show_prints_plain_text_to_a_pipe(run_cli, results):
    done = run_cli("show", results / "runs" / "mine", "--question", 1, "--arm", "fixed-5")
    assert done.returncode == 0, done.stderr
    assert "question 1 (mt_bench, turn 2), fixed 5:" in done.stdout
    assert "\033[" not in done.stdout


def call(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def one_sentence(error: str) -> bool:
    return error.count("\n") == 1 and error.endswith(".\n") and "Traceback" not in error


def test_show_colours_a_terminal_unless_told_not_to(results, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32m" in call(capsys, "show", results / "runs" / "mine")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in call(capsys, "show", results / "runs" / "mine")[1]


@pytest.mark.parametrize(
    "words",
    [
        ["report", "nowhere"],
        ["show", "nowhere"],
        ["paper-tables", "--runs", "nowhere"],
        ["show", "RUN", "--question", "4711"],
        ["show", "RUN", "--arm", "fixed-77"],
    ],
)
def test_wrong_input_is_one_sentence_and_code_2(words, results, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = call(capsys, *(results / "runs" / "mine" if word == "RUN" else word for word in words))
    assert (code, out) == (2, "")
    assert one_sentence(error)


def test_output_under_a_file_is_refused(results, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = call(capsys, "report", results / "runs" / "mine", "--out", tmp_path / "file" / "out")
    assert code == 2
    assert one_sentence(error) and "--out" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_refused(results, capsys, tmp_path):
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "tables" / "details.csv").symlink_to("/dev/full")
    code, _, error = call(capsys, "report", results / "runs" / "mine", "--out", tmp_path / "out")
    assert code == 2
    assert one_sentence(error) and "No space left" in error


def paper_tables(capsys, results, out):
    return call(capsys, "paper-tables", "--reference", results / "reference", "--runs", results / "runs", "--out", out)


def test_paper_tables_skips_random_and_unfinished_runs(capsys, tmp_path):
    store_run(tmp_path / "runs" / "random", Recipe(questions=1, repetitions=1, facts={"random_weights": True}))
    unfinished = store_run(tmp_path / "runs" / "unfinished", Recipe(questions=1, repetitions=1))
    (unfinished / "cell-fixed-5" / "done.json").unlink()
    code, out, _ = paper_tables(capsys, tmp_path, tmp_path / "out")
    assert code == 0
    assert "random: skipped" in out and "unfinished: skipped, not finished (1 arm left out: fixed-5 (unfinished))" in out
    assert not (tmp_path / "out").exists()


def test_one_damaged_run_does_not_hide_the_others(capsys, tmp_path):
    broken = store_run(tmp_path / "runs" / "broken", Recipe(questions=1, repetitions=1))
    (broken / "cell-ar" / "turns.jsonl").write_text("")
    sound = store_run(tmp_path / "runs" / "sound", Recipe(questions=1, repetitions=1))
    change_done(sound, "fixed-2", status="wrong_output")
    code, out, error = paper_tables(capsys, tmp_path, tmp_path / "out")
    assert code == 2
    assert one_sentence(error) and str(broken) in error
    assert "1 arm left out: fixed-2 (wrong_output)" in out
    assert (tmp_path / "out" / "tables" / "sound" / "details.md").is_file()


def test_an_own_run_named_like_a_reference_run_replaces_nothing(capsys, tmp_path):
    for place in ("reference", "runs"):
        store_run(tmp_path / place / "same", Recipe(questions=1, repetitions=1))
    paper_tables(capsys, tmp_path, tmp_path / "out")
    assert {folder.name for folder in (tmp_path / "out" / "tables").iterdir()} == {"same", "same-own"}


def test_tables_are_rebuilt_to_the_same_bytes(capsys, results, tmp_path):
    for name in ("a", "b"):
        paper_tables(capsys, results, tmp_path / name)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*")]
    assert len(files) > 20
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
