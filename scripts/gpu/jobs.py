"""What the GPU jobs share: options, steps that are done once, child processes, and where a result came from.

A job is a list of steps. Each step makes one product (a file or a folder under --out) that appears whole or not at all, so a
job that was interrupted continues where it stopped when the same command is given again, and a finished one does nothing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # a bare checkout will do

from gammatune.errors import UserError, exit_code_of  # noqa: E402
from gammatune.models.pairs import choose_device  # noqa: E402
from gammatune.runs.cells import hold_folder, read_json, write_json  # noqa: E402
from gammatune.runs.monitor import watch_machine  # noqa: E402
from gammatune.runs.provenance import describe_environment  # noqa: E402

GRACE_S = 60  # for a child that was asked to stop
REPORTED = {"out", "work", "minutes", "runtimes"}  # options that change nothing about any one result


class OutOfTimeError(Exception):
    """The minutes are over; the message says what remains."""


@dataclass
class Finished:
    """A child process that has ended."""

    code: int
    out: str
    err: str

    @property
    def last_json(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def complaint(self) -> str:
        """Its last words on stderr."""
        return (self.err.strip().splitlines() or ["no word on stderr"])[-1].removeprefix("gammatune: ")


def make_parser(doc: str, name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference" / name, help="folder of the results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu" / name, help="folder of logs and runs")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--minutes", type=float, help="stop cleanly after so many; the same command continues")
    parser.add_argument("--dry-run", action="store_true", help="the same path on the CPU, with tiny settings")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further config settings, as for run.py")
    return parser


@dataclass
class Job:
    """One call of a job script."""

    options: argparse.Namespace
    started: float = field(default_factory=time.monotonic)
    worked: bool = False

    @property
    def out(self) -> Path:
        return self.options.out

    @property
    def device(self) -> str:
        return "cpu" if self.options.dry_run else self.options.device

    def open(self) -> None:
        """Raises UserError for a device that is not there, and for a folder that holds results of other settings."""
        try:
            self.torch_device = choose_device(self.device)
        except UserError as error:
            raise UserError(f"{error} To try the job without one: --dry-run.") from error
        if self.options.minutes is not None and self.options.minutes <= 0:
            raise UserError(f"--minutes {self.options.minutes:g} must be above 0.")
        self.options.work.mkdir(parents=True, exist_ok=True)
        asked = {name: value for name, value in vars(self.options).items() if name not in REPORTED}
        asked, path = json.loads(json.dumps(asked, default=str)), self.out / "job.json"
        if not path.exists():
            write_json(path, asked)
        elif read_json(path) != asked:
            raise UserError(f"{self.out} holds results of other settings: give those again, or choose another --out FOLDER.")

    def step(self, product: str, make: Callable[[Path], None]) -> None:
        """make(path) leaves a file or folder at path, which then becomes out/product; nothing where that exists."""
        path, partial = self.out / product, self.options.work / f"{product.replace('/', '-')}.partial"
        if path.exists():
            return
        self.require_time(product)
        self.stamp(product)
        print(f"{product}: started", flush=True)
        started = time.monotonic()
        remove(partial)
        make(partial)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Moved beside its place first, since a rename between file systems is not atomic
        beside = path.with_name(f".{path.name}.partial")
        remove(beside)
        shutil.move(partial, beside)
        beside.replace(path)
        print(f"{product}: done in {time.monotonic() - started:.0f} s", flush=True)

    def stamp(self, product: str) -> None:
        """Where and with what, on disk before the step begins; one entry per call that had something to do."""
        path = self.out / "provenance.json"
        sessions = read_json(path)["sessions"] if path.exists() else []
        if not self.worked:
            sessions.append(describe_environment(self.torch_device, {}) | {"steps": []})
            self.worked = True
        sessions[-1]["steps"].append({"product": product, "time": datetime.now(UTC).isoformat(timespec="seconds")})
        write_json(path, {"schema": 1, "sessions": sessions})

    def note(self, product: str, command: list[str]) -> None:
        """The exact command that made a product."""
        path = self.out / "commands.json"
        shown = " ".join(["python", *command[1:]])
        for folder, name in ((self.out, "OUT"), (self.options.work, "WORK"), (ROOT, ".")):
            shown = shown.replace(str(folder), name)
        write_json(path, (read_json(path) if path.exists() else {}) | {product: shown})

    def seconds_left(self) -> float | None:
        if self.options.minutes is None:
            return None
        return self.started + 60 * self.options.minutes - time.monotonic()

    def require_time(self, product: str) -> None:
        left = self.seconds_left()
        if left is not None and left <= 0:
            raise OutOfTimeError(
                f"The {self.options.minutes:g} minutes are over before {product}: the same command continues."
            )

    def run(self, product: str, words: list, allowed: tuple[int, ...] = (0,)) -> Finished:
        """A Python child in the project's root, its output in the work folder. Raises UserError for another exit code."""
        command, log = [sys.executable, *map(str, words)], self.options.work / product.replace("/", "-")
        self.note(product, command)
        paths = [log.with_name(f"{log.name}.{end}") for end in ("out", "err")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with paths[0].open("w") as out, paths[1].open("w") as err, watch_machine(self.out / "machine.jsonl"):
            pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
            self.wait(child, product)
        ended = Finished(child.returncode, *(path.read_text() for path in paths))
        if ended.code not in allowed:
            self.refuse(product, ended)
        return ended

    def refuse(self, product: str, ended: Finished) -> NoReturn:
        raise UserError(
            f"The step {product} ended with exit code {ended.code} ({ended.complaint.rstrip('.')}): see the logs in "
            f"{self.options.work}, and give the same command to continue."
        )

    def wait(self, child: subprocess.Popen, product: str) -> None:
        try:
            child.wait(timeout=self.seconds_left())
        except subprocess.TimeoutExpired as error:
            stop(child)
            sentence = f"The {self.options.minutes:g} minutes are over during {product}: the same command continues."
            raise OutOfTimeError(sentence) from error
        except BaseException:
            stop(child)
            raise

    def finish(self, what: str) -> None:
        """The line for results/reference/README.md, in a README of this folder."""
        first = read_json(self.out / "provenance.json")["sessions"][0]
        versions = ", ".join(f"{name} {first['packages'][name]}" for name in ("torch", "transformers"))
        made = f"`python scripts/gpu/{' '.join(leave_out_places(first['command']))}`"
        lines = ["| folder | what | made with | on |", "|---|---|---|---|"]
        text = "\n".join([*lines, f"| `{self.out.name}` | {what} | {made} | {first['device']}, {versions} |", ""])
        readme = self.out / "README.md"
        if not readme.exists() or readme.read_text() != text:
            readme.write_text(text)


def leave_out_places(words: list[str]) -> list[str]:
    """A command without --out and --work, which change nothing about the results."""
    places = {i + j for i, word in enumerate(words) if word in ("--out", "--work") for j in (0, 1)}
    return [word for i, word in enumerate(words) if i not in places]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def stop(child: subprocess.Popen) -> None:
    """With all that it started. Asked as by Ctrl-C, so that it closes its files; killed where it does not listen."""
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def run_job(parser: argparse.ArgumentParser, work: Callable[[Job], str], words: list[str]) -> int:
    """work(job) does all steps and returns a sentence on what was made. The last line of output is one JSON object.

    Exit code 0 also where the minutes were over (status "unfinished"), 2 with one sentence for what the user can mend,
    130 after an interrupt.
    """
    options = parser.parse_intermixed_args(words)
    options.out, options.work = options.out.resolve(), options.work.resolve()
    job = Job(options)
    try:
        with hold_folder(job.out, "--out FOLDER"):
            job.open()
            job.finish(work(job))
    except OutOfTimeError as sentence:
        print(sentence, file=sys.stderr)
        return print_last_line(job, "unfinished")
    except KeyboardInterrupt:
        print(f"Interrupted; what was made is kept in {job.out}, and the same command continues.", file=sys.stderr)
        return 130
    except Exception as error:
        return exit_code_of(error)
    return print_last_line(job, "ok")


def print_last_line(job: Job, status: str) -> int:
    print(json.dumps({"out": str(job.out), "status": status, "worked": job.worked}), flush=True)
    return 0
