"""The commands over stored files as a user runs them; none of them may need torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report.stored import Recipe, change_done, store_run
from report.stored_study import draw_study_table, made_bounds, made_folder, store_study

from gammatune import cli
from gammatune.report.names import policy_name
from gammatune.studies.study import PRICES_FILE

ROOT = Path(__file__).parents[1]
SMALL = Recipe(questions=1, repetitions=1)
BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked here")
sys.meta_path.insert(0, Refuse())
"""
TEXT, PICTURES = ("md", "tex", "csv"), ("png", "svg")
STUDY_FILES = {f"{n}.{kind}" for n in ("headline", "ranking", "starts", "sensitivity") for kind in TEXT + PICTURES}
STUDY_FILES |= {f"{name}.{kind}" for name in ("headline_by_task", "lengths", "tuned") for kind in TEXT}
STUDY_FILES |= {f"{name}.{kind}" for name in ("prices", "best_gamma_by_task") for kind in PICTURES}
BOUNDS_FILES = {f"{n}.{kind}" for n in ("starts", "headline") for kind in TEXT} | {f"bounds.{kind}" for kind in PICTURES}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stored run that no test may change."""
    return store_run(tmp_path_factory.mktemp("runs") / "mine", Recipe(questions=2, repetitions=1))


@pytest.fixture
def rebuild(call, tmp_path):
    """paper-tables over tmp_path/reference, runs and acceptance into tmp_path/out, or as the keywords say."""

    def rebuilt(**places):
        places = {name: tmp_path / name for name in ("reference", "runs", "acceptance", "out")} | places
        return call("paper-tables", *(word for name, place in places.items() for word in (f"--{name}", place)))

    return rebuilt


def one_sentence(error: str) -> bool:
    return error.count("\n") == 1 and error.endswith(".\n") and "Traceback" not in error


def test_paper_tables_needs_no_torch(run, tmp_path):
    """In a process where torch cannot be imported: one run, one study, one folder of bounds."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    refused = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, env=env)
    assert "torch is blocked here" in refused.stderr
    command = [sys.executable, "-m", "gammatune", "paper-tables", "--out", tmp_path / "out"]
    command += ["--reference", made_bounds().parent, "--runs", run.parent, "--acceptance", made_folder().parent]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "mine: 17 files" in done.stdout and "made: 33 files" in done.stdout and "log: 8 files, bounds" in done.stdout


def test_report_prints_a_table_and_writes_files(run, call, tmp_path):
    code, out, error = call("report", run, "--out", tmp_path / "out")
    assert code == 0, error
    assert "GammaTune+" in out and "speedup" in out and "Replay: not checked" in out
    assert (tmp_path / "out" / "tables" / "details.csv").is_file()
    assert (tmp_path / "out" / "figures" / "speedup_by_task.svg").is_file()


def test_show_prints_one_answer_and_colours_a_terminal_unless_told_not_to(run, call, monkeypatch):
    out = call("show", run, "--question", 1, "--arm", "fixed-5")[1]
    assert "question 1 (mt_bench, turn 2), fixed 5:" in out and "\033[" not in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32m" in call("show", run)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in call("show", run)[1]


def test_wrong_input_is_one_sentence_and_code_2(run, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["report", "nowhere"],
        ["show", "nowhere"],
        ["paper-tables", "--runs", "nowhere"],
        ["show", run, "--question", "4711"],
        ["show", run, "--arm", "fixed-77"],
    ):
        code, out, error = call(*words)
        assert (code, out) == (2, "") and one_sentence(error)


def test_output_that_cannot_be_written_is_refused(run, call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = call("report", run, "--out", tmp_path / "file" / "out")
    assert code == 2 and one_sentence(error) and "--out" in error
    if Path("/dev/full").exists():
        (tmp_path / "out" / "tables").mkdir(parents=True)
        (tmp_path / "out" / "tables" / "details.csv").symlink_to("/dev/full")
        code, _, error = call("report", run, "--out", tmp_path / "out")
        assert code == 2 and one_sentence(error) and "No space left" in error


def test_an_interrupt_says_how_to_go_on_and_a_defect_keeps_its_traceback(run, call, monkeypatch):
    def fail(kind):
        def command(options):
            raise kind

        monkeypatch.setattr("gammatune.commands.show.show_answer", command)

    fail(KeyboardInterrupt)
    code, _, error = call("show", run)
    assert code == 130 and one_sentence(error) and "the same command continues from there" in error
    fail(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        call("show", run)


def test_output_may_be_cut_by_its_reader(run):
    """`show RUN | head -1`, with more text than a pipe holds."""
    program = (
        f"from gammatune.__main__ import main; import sys; sys.exit(max(main(['show', {str(run)!r}]) for _ in range(200)))"
    )
    done = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.readline()
    done.stdout.close()
    assert done.wait(60) == 0 and done.stderr.read() == b""
    done.stderr.close()


def test_everything_sound_is_rebuilt_and_what_is_damaged_is_named(call, rebuild, run, tmp_path):
    """The damaged ones come first."""
    names = ("a_run", "b_study", "c_log")
    store_run(tmp_path / "runs" / "a_run", SMALL)
    (tmp_path / "runs" / "a_run" / "cell-ar" / "turns.jsonl").write_text("")
    store_study(tmp_path / "reference" / "b_study", draw_study_table(questions=1))
    (tmp_path / "reference" / "b_study" / PRICES_FILE).write_text("{}")
    shutil.copytree(made_bounds(), tmp_path / "reference" / "c_log")
    (tmp_path / "reference" / "c_log" / "starts.csv").write_text("")
    shutil.copytree(run, tmp_path / "runs" / "run")
    change_done(tmp_path / "runs" / "run", "fixed-2", status="wrong_output")
    shutil.copytree(made_folder(), tmp_path / "acceptance" / "study")
    shutil.copytree(made_bounds(), tmp_path / "reference" / "log")
    code, out, error = rebuild()
    assert code == 2 and "Traceback" not in error
    assert [any(name in line for name in names) for line in error.splitlines()] == [True] * 3
    assert "1 arm left out: fixed-2 (wrong_output)" in out and out.count("\n") == 3
    written = {name: {file.name for file in (tmp_path / "out").glob(f"*/{name}/*")} for name in ("run", "study", "log")}
    assert (written["study"], written["log"]) == (STUDY_FILES, BOUNDS_FILES) and "speedup.tex" in written["run"]
    tables = tmp_path / "out" / "tables"
    assert policy_name("sglang_walk") in (tables / "study" / "ranking.md").read_text()
    assert r"\label{tab:headline-by-task}" in (tables / "study" / "headline_by_task.tex").read_text()
    assert r"\label{tab:bounds-starts}" in (tables / "log" / "starts.tex").read_text()
    rebuild(out=tmp_path / "again", runs=tmp_path / "none")
    files = [file.relative_to(tmp_path / "again") for file in (tmp_path / "again").rglob("*.*")]
    assert len(files) == len(STUDY_FILES) + len(BOUNDS_FILES)
    assert all((tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_paper_tables_skips_random_and_unfinished_runs(rebuild, tmp_path):
    store_run(tmp_path / "runs" / "random", Recipe(questions=1, repetitions=1, facts={"random_weights": True}))
    unfinished = store_run(tmp_path / "runs" / "unfinished", SMALL)
    (unfinished / "cell-fixed-5" / "done.json").unlink()
    code, out, _ = rebuild()
    assert code == 0
    assert "random: skipped" in out and "unfinished: skipped, not finished (1 arm left out: fixed-5 (unfinished))" in out
    assert not (tmp_path / "out").exists()


def test_an_own_run_named_like_a_reference_run_replaces_nothing(rebuild, tmp_path):
    for place in ("reference", "runs"):
        store_run(tmp_path / place / "same", SMALL)
    rebuild()
    assert {folder.name for folder in (tmp_path / "out" / "tables").iterdir()} == {"same", "same-own"}


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    names = ["run", "record", "prices", "headline", "sweep", "bounds", "import", "export", "report", "paper-tables", "show"]
    assert all(f"\n    {name} " in listed or f"\n    {name}\n" in listed for name in names)
