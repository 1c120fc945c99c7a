"""What surrounds a command: pipes that break, streams that are closed or full, odd encodings, and Ctrl-C at any moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_inputs.case import SMALL
from bad_inputs.child import Child
from bad_inputs.command_lines import GRID, PLAN, TABLE, write_files
from report.stored import Recipe, store_run

from gammatune import process

ROOT = Path(__file__).parents[1]
PLANNED = ("run", *PLAN, "tasks.overlong=skip")

BUSY_S = 60.0  # that a command may take where other tests want the cores, too; torture.py counts hangs over ten


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return store_run(tmp_path_factory.mktemp("runs") / "mine", Recipe(questions=2, repetitions=1))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """ended(words, prepare) -> Outcome of a child of this process, in a folder with a table and questions."""
    import gammatune.cli
    import gammatune.runs.runner  # noqa: F401  here once, not in every child

    def start(words, prepare=lambda: None):
        folder = tmp_path_factory.mktemp("child")
        write_files(folder)
        return Child(tuple(map(str, words)), folder, prepare, limit_s=BUSY_S).wait()

    return start


def break_pipe():
    """Standard output goes to a reader that has left."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def fill_stdout():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


COMMANDS = {
    "plan": PLANNED,
    "config": ("run", "--cfg=job"),
    "info": ("run", "--info"),
    "sweep of plans": (*PLANNED, "-m", "seed=1,2"),
    "help": ("--help",),
    "help of run": ("run", "--help"),
    "help of show": ("show", "--help"),
    "headline": (*TABLE, "policy=[fixed,svip]"),
    "sweep": GRID,
    "report": ("report", "RUN", "--out", "report"),
    "show": ("show", "RUN"),
    "export": ("export", "RUN", "--out", "answers"),
    "record": ("record", *SMALL[1:-1]),
}


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in COMMANDS.items()])
def test_a_reader_that_leaves_is_no_error_and_a_full_disk_under_stdout_is_a_true_one(ended, run, words):
    words = [run if word == "RUN" else word for word in words]
    left = ended(words, break_pipe)
    assert left.code == 0 and "Error" not in left.err and "Broken" not in left.err
    if Path("/dev/full").exists() and "--help" not in words:
        full = ended(words, fill_stdout)
        last = full.err.splitlines()[-1]
        assert full.code == 2 and "Traceback" not in full.err
        assert "Standard output cannot be written (No space left on device)" in full.err and last.endswith(".")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_harm_nothing(ended, closed):
    """Nothing of ours may land in a file that got the number of a closed stream."""

    def close():
        for number in closed:
            os.close(number)

    outcome = ended((*TABLE, "policy=[fixed]"), close)
    assert outcome.code == 0 and (1 in closed) == (outcome.out == "") and outcome.err == ""
    assert ended((*TABLE, "policy=[nope]"), close).code == 2


def test_messages_that_cannot_be_written_change_nothing(ended):
    def fill_stderr():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

    assert ended(("show", "nowhere"), fill_stderr).code == 2
    assert ended(SMALL, fill_stderr).code == 0


@pytest.mark.parametrize("entry", [["run.py"], ["-m", "gammatune", "run"]])
def test_any_encoding_will_do(entry, tmp_path):
    """ASCII streams and, without UTF-8 mode, a file system of ASCII too."""
    folder = tmp_path / "josé ☃"
    strict = os.environ | {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}

    def call(*words):
        command = [sys.executable, "-X", "utf8=0", *entry, *words]
        return subprocess.run(command, cwd=ROOT, env=strict, capture_output=True, text=True, check=False)

    done = call(f"--config-dir={folder}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no folder" in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    if entry == ["run.py"]:
        write_files(tmp_path)
        done = call(*SMALL[1:], f"tasks.path={tmp_path / 'questions.jsonl'}", f"results={folder}")
        assert done.returncode == 0 and len(list(folder.glob("*/acceptance.parquet"))) == 1, done.stderr


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3, 0.6, 1.5])
def test_ctrl_c_in_the_first_second_is_quiet(delay, tmp_path):
    """While libraries are imported; the seconds count from the moment at which Python is about to run our first line."""
    (tmp_path / "sitecustomize.py").write_text("print('ready', flush=True)\n")
    command = [sys.executable, "run.py", *PLAN, f"results={tmp_path / 'r'}"]
    alone = os.environ | {"PYTHONPATH": str(tmp_path)}
    started = subprocess.Popen(command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    time.sleep(delay)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=30)
    if started.returncode == 0:  # it was faster
        assert err == "" and '"status": "planned"' in out
    else:
        assert started.returncode == 130 and err.startswith("gammatune: Interrupted") and err.count("\n") == 1, err


def test_an_interrupt_while_libraries_load_ends_the_process_at_once(ended):
    """Also where the library would make something else of it."""

    def interrupt():
        def load():
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise ImportError("swallowed") from None

        sys.modules.pop("gammatune.studies.record", None)

        class Finder:
            def find_spec(self, name, path=None, target=None):
                return load() if name == "gammatune.studies.record" else None

        sys.meta_path.insert(0, Finder())

    outcome = ended(("record", "model_pair=tiny-random"), interrupt)
    assert (outcome.code, outcome.err) == (130, "gammatune: Interrupted before anything was written.\n")


def test_an_interrupt_that_is_ignored_stays_ignored():
    """nohup and background jobs of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with process.loading():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
