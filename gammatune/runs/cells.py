"""Where runs live on disk: one folder per run, one cell (folder) per arm, each named by a hash of what it contains.

    results/runs/<pair>-<tasks>-<run hash>/
        run.json                 what was run: pair, tasks, decode, runtime, arms
        pieces.json              token id -> text, for every id that was emitted
        machine.jsonl            clocks and load, sampled while answers were made
        <label>-<cell hash>/
            config.json          everything that the hash is made of
            provenance.json      where and with what, written before the first forward
            turns.jsonl          one TurnLog per line, appended question by question
            done.json            status, written last

A finished cell is skipped, an unfinished one continues after its last complete question.
"""

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gammatune.compose import Arm
from gammatune.errors import UserError
from gammatune.records import SCHEMA, TurnLog, refuse_newer
from gammatune.tasks.questions import Question


def content_hash(content) -> str:
    """Ten hex digits of the SHA-256 of the canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_json(path: Path, content) -> None:
    """Write atomically: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict:
    """Raises UserError when the file is damaged or of a newer schema."""
    try:
        content = json.loads(path.read_text())
        schema = content.get("schema", 0)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete the folder {path.parent} and run again.") from error
    refuse_newer(schema, path, "update gammatune, or choose another folder with results=FOLDER")
    return content


@dataclass
class Cell:
    """One arm of a run on disk. `content` is what its hash is made of."""

    arm: Arm
    folder: Path
    content: dict

    @property
    def turns_file(self) -> Path:
        return self.folder / "turns.jsonl"

    @property
    def done_file(self) -> Path:
        return self.folder / "done.json"

    def read_done(self) -> dict | None:
        return read_json(self.done_file) if self.done_file.exists() else None

    def refuse_changed(self) -> None:
        """Raises UserError when the log is no longer the one that the cell finished with."""
        done = self.read_done()
        if done and done.get("sha256") != self.hash_log():
            raise UserError(
                f"{self.turns_file} was changed or cut short after it was finished: delete the folder "
                f"{self.folder} and run again."
            )

    def reopen(self) -> None:
        """Take back the last word before more answers are added to the log that it vouches for."""
        self.done_file.unlink(missing_ok=True)

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.json"
        if config.exists() and content_hash(read_json(config)) != content_hash(self.content):
            raise UserError(
                f"{config} does not describe this run (another pair, policy or task set): delete the folder "
                f"{self.folder}, or choose another with results=FOLDER."
            )
        write_json(config, self.content)

    def read_turns(self):
        """Yield (bytes of the line, TurnLog) in file order, without a last line that a kill left without its newline."""
        if not self.turns_file.exists():
            return
        with self.turns_file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield len(line), TurnLog.from_json(line.decode(errors="replace"), f"{self.turns_file} line {number}")

    def resume(self, questions: list[Question]) -> tuple[set[tuple[int, int]], TurnLog | None]:
        """Cut the log after its last complete question; ((repetition, question id) of those kept, last turn kept)."""
        turns_of = {question.question_id: len(question.turns) for question in questions}
        complete, last, kept_bytes, position = set(), None, 0, 0
        for size, turn in self.read_turns():
            position += size
            if turn.turn + 1 == turns_of.get(turn.question_id):
                complete.add((turn.repetition, turn.question_id))
                last, kept_bytes = turn, position
        if self.turns_file.exists() and self.turns_file.stat().st_size != kept_bytes:
            os.truncate(self.turns_file, kept_bytes)
        return complete, last

    def append(self, turns: list[TurnLog]) -> None:
        """Add one question's turns in a single write."""
        with self.turns_file.open("a") as log:
            log.write("".join(turn.to_json() + "\n" for turn in turns))

    def finish(self, summary: dict) -> None:
        write_json(self.done_file, {"schema": SCHEMA, **summary, "sha256": self.hash_log()})

    def hash_log(self) -> str:
        log = self.turns_file.read_bytes() if self.turns_file.exists() else b""
        return hashlib.sha256(log).hexdigest()


@dataclass
class RunFolder:
    """A run on disk: its folder and one cell per arm, the autoregressive one first."""

    path: Path
    cells: list[Cell]

    @property
    def reference(self) -> Cell:
        return self.cells[0]


@contextmanager
def hold_folder(path: Path, choice: str = "results=FOLDER"):
    """Make a folder and hold it against a second process; the lock goes with this process, however it ends.

    Raises UserError where it cannot be written or is held; choice: the setting that names another folder.
    """
    make_folder(path, choice)
    with (path / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is already running {path}: wait for it, or choose another folder with {choice}."
            ) from error
        yield


def make_folder(path: Path, choice: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {path} ({error.strerror}): choose another folder with {choice}.") from error


def open_run(results: Path, name: str, shared: dict, arms: list[Arm]) -> RunFolder:
    """Name the run and its cells by content. shared: what all arms have in common (pair, tasks, decode, runtime, seed)."""
    contents = [
        {"schema": SCHEMA, **shared, "policy": arm.policy_name, "rule": type(arm.policy).__name__, "settings": arm.settings}
        for arm in arms
    ]
    path = results / f"{name}-{content_hash(contents)}"
    cells = [
        Cell(arm, path / f"{arm.label}-{content_hash(content)}", content)
        for arm, content in zip(arms, contents, strict=True)
    ]
    return RunFolder(path, cells)
