"""Where runs live on disk: one folder per run, one cell (folder) per arm, each named by a hash of what it contains.

    results/runs/<pair>-<tasks>-<run hash>/
        run.json                 what was run: pair, tasks, decode, runtime, arms
        pieces.json              token id -> text, for every id that was emitted
        machine.jsonl            clocks and load, sampled while answers were made
        acceptance.parquet       what the drafter would propose at each position of the answers (greedy runs)
        <label>-<cell hash>/
            config.json          everything that the hash is made of
            provenance.json      where and with what, written before the first forward
            turns.jsonl          one TurnLog per line, appended question by question
            done.json            status, written last

A finished cell is skipped, an unfinished one continues after its last complete question. Reports read only arms whose cell
ended `ok`; every other arm is named, with the reason, in `StoredRun.left_out`. Nothing here loads a model.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from gammatune.compose import Arm
from gammatune.errors import UserError
from gammatune.files import content_hash, read_json, write_json
from gammatune.records import SCHEMA, TurnLog
from gammatune.runs import frames
from gammatune.tasks.questions import Question

BASELINE = "ar"
MAKE_A_RUN = "make a run with `python run.py`"
UNUSABLE = "delete that folder and run it again"


@dataclass
class LoggedTurn:
    """A line of turns.jsonl."""

    bytes: int  # of the line, its newline included
    turn: TurnLog


def read_log(file: Path) -> Iterator[LoggedTurn]:
    """The turns in file order, without a last line that a kill cut short. Raises UserError for a damaged line."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield LoggedTurn(len(line), TurnLog.from_json(line.decode(errors="replace"), f"{file} line {number}"))


def hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()


@dataclass
class Cell:
    """One arm of a run on disk, while it is made."""

    arm: Arm
    folder: Path
    content: dict  # what its hash is made of

    @property
    def turns_file(self) -> Path:
        return self.folder / "turns.jsonl"

    @property
    def done_file(self) -> Path:
        return self.folder / "done.json"

    def read_done(self) -> dict | None:
        return read_json(self.done_file, UNUSABLE) if self.done_file.exists() else None

    def refuse_changed(self) -> None:
        """Raises UserError when the log is no longer the one that the cell finished with."""
        done = self.read_done()
        if done and done.get("sha256") != hash_file(self.turns_file):
            raise UserError(
                f"{self.turns_file} was changed or cut short after it was finished: delete the folder "
                f"{self.folder} and run again."
            )

    def reopen(self) -> None:
        """Delete done.json before more answers are added to the log whose checksum it holds."""
        self.done_file.unlink(missing_ok=True)

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.json"
        if config.exists() and content_hash(read_json(config, UNUSABLE)) != content_hash(self.content):
            raise UserError(
                f"{config} does not describe this run (another pair, policy or task set): delete the folder "
                f"{self.folder}, or choose another with results=FOLDER."
            )
        write_json(config, self.content)

    def resume(self, questions: list[Question]) -> tuple[set[tuple[int, int]], TurnLog | None]:
        """Cut the log after its last complete question; ((repetition, question id) of those kept, last turn kept)."""
        turns_of = {question.question_id: len(question.turns) for question in questions}
        complete, last, kept_bytes, position = set(), None, 0, 0
        for logged in read_log(self.turns_file):
            position, turn = position + logged.bytes, logged.turn
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
        write_json(self.done_file, {**summary, "sha256": hash_file(self.turns_file)})


@dataclass
class RunFolder:
    """A run on disk: its folder and one cell per arm, the autoregressive one first."""

    path: Path
    cells: list[Cell]

    @property
    def reference(self) -> Cell:
        return self.cells[0]


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


@dataclass
class StoredArm:
    """One policy of a run. status: ok, wrong_output, error, or unfinished where the cell has no done.json yet."""

    label: str
    policy: str
    gamma: int | None
    cell: str
    settings: dict = field(default_factory=dict)
    status: str = "unfinished"
    done: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    turns: list[TurnLog] = field(default_factory=list)

    @property
    def exact(self) -> bool | None:
        """Whether the output is the target's own; None where sampling makes that no question of equality."""
        return self.done.get("exact")


@dataclass(eq=False)
class StoredRun:
    """A run folder. facts: run.json. arms: the `ok` ones, in the run's order. left_out: (label, reason) of the others."""

    path: Path
    facts: dict
    arms: list[StoredArm]
    left_out: list[tuple[str, str]]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def has_baseline(self) -> bool:
        """Whether speedups may be formed: the autoregressive arm is ok, and the weights mean something."""
        return not self.facts.get("random_weights") and any(arm.label == BASELINE for arm in self.arms)

    @cached_property
    def turns(self) -> pd.DataFrame:
        return frames.turn_table(self.arms)

    @cached_property
    def questions(self) -> pd.DataFrame:
        return frames.question_table(self.turns)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        return frames.round_table(self.arms)

    def arm(self, label: str) -> StoredArm:
        """The ok arm of that label. Raises UserError that lists the labels there are."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise UserError(f"{self.name} has no finished arm {label}: choose one of {', '.join(a.label for a in self.arms)}.")

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Text of each output token id. Raises UserError where pieces.json is missing or damaged."""
        stored = read_json(self.path / "pieces.json", UNUSABLE)
        return {int(token): text for token, text in stored["pieces"].items()}

    @cached_property
    def machine(self) -> pd.DataFrame:
        """Samples of the machine while the run worked: time, load, and clocks where known; empty where none were taken."""
        file = self.path / "machine.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        # The sampler is killed at the end of a run, possibly in mid-line
        samples = [json.loads(line) for line in lines if line.endswith("}\n")]
        return pd.DataFrame(samples, columns=None if samples else ["time", "load"])

    def left_out_sentence(self) -> str:
        """For example "2 arms left out: gammatune-3 (wrong_output), fixed-5 (unfinished)"; empty where none was."""
        if not self.left_out:
            return ""
        arms = "1 arm" if len(self.left_out) == 1 else f"{len(self.left_out)} arms"
        return f"{arms} left out: " + ", ".join(f"{label} ({reason})" for label, reason in self.left_out)


def read_run(path: str | os.PathLike) -> StoredRun:
    """Read one run folder. Raises UserError for a missing or damaged file, a newer schema, or no arm to report on."""
    path = Path(path).resolve()
    facts = read_facts(path)
    arms = [read_arm(path, described) for described in facts["arms"]]
    left_out = {arm.label: arm.status for arm in arms if arm.status != "ok"}
    left_out |= find_unlike([arm for arm in arms if arm.status == "ok"])
    kept = [arm for arm in arms if arm.label not in left_out]
    run = StoredRun(path, facts, kept, list(left_out.items()))
    if not kept:
        failed = next((arm.done["error"] for arm in arms if arm.done.get("error")), None)
        raise UserError(
            f"{path} has no finished arm to report on ({run.left_out_sentence()}): "
            f"{f'{arms[0].label} ended with this. {failed}' if failed else 'run the same command again to finish it.'}"
        )
    return run


def read_facts(path: Path) -> dict:
    """run.json with the keys that every report needs. Raises UserError."""
    if not (path / "run.json").is_file():
        inside = [run.name for run in find_runs(path)] if path.is_dir() else []
        example = path / inside[0] if inside else "results/runs/NAME"
        hint = f"give the folder of one run, such as {example}" + ("" if inside else f", or {MAKE_A_RUN}")
        raise UserError(f"{path} holds no run.json, so it is no run: {hint}.")
    facts = read_json(path / "run.json", UNUSABLE)
    if not isinstance(facts.get("arms"), list) or not {"pair", "tasks", "runtime"} <= facts.keys():
        raise UserError(f"{path / 'run.json'} is damaged (arms, pair, tasks or runtime missing): {UNUSABLE}.")
    return facts


def read_arm(path: Path, described: dict) -> StoredArm:
    """One arm of run.json with what its cell holds; turns are read where the cell finished without an error."""
    try:
        arm = StoredArm(*(described[key] for key in ("label", "policy", "gamma", "cell")), described.get("settings", {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'run.json'} is damaged (an arm without {error}): {UNUSABLE}.") from error
    cell = path / arm.cell
    if not (cell / "done.json").is_file():
        return arm
    arm.done = read_json(cell / "done.json", UNUSABLE)
    arm.status = arm.done.get("status", "error")
    if arm.status == "error":
        return arm
    arm.provenance = read_json(cell / "provenance.json", UNUSABLE)
    arm.turns = read_turns(cell / "turns.jsonl", arm.done)
    return arm


def read_turns(file: Path, done: dict) -> list[TurnLog]:
    """All turns of a finished cell. Raises UserError where the bytes are not those that the run finished with."""
    if hash_file(file) != done.get("sha256"):
        raise UserError(f"{file} was changed or cut short after its run (checksum differs from done.json): {UNUSABLE}.")
    turns = [logged.turn for logged in read_log(file)]
    for turn in turns:
        if sum(r.emitted for r in turn.rounds) != len(turn.output_ids):
            raise UserError(f"{file} is damaged (the rounds of question {turn.question_id} do not add up): {UNUSABLE}.")
    return turns


def find_unlike(arms: list[StoredArm]) -> dict[str, str]:
    """Arms that answered other questions than the baseline: nothing may be compared with them."""
    asked = {arm.label: {(t.repetition, t.question_id, t.turn) for t in arm.turns} for arm in arms}
    expected = asked.get(BASELINE)
    return {label: f"other questions than {BASELINE}" for label, found in asked.items() if expected and found != expected}


def find_runs(folder: Path) -> list[Path]:
    """Run folders directly under `folder`, oldest first."""
    found = Path(folder).glob("*/run.json")
    return [file.parent for file in sorted(found, key=lambda file: (file.stat().st_mtime, file.parent.name))]


def results_folder() -> Path:
    """results/ of this project: $GAMMATUNE_RESULTS, else the nearest `results` at or above the current folder."""
    if named := os.environ.get("GAMMATUNE_RESULTS"):
        return Path(named)
    here = Path.cwd()
    return next((f / "results" for f in (here, *here.parents) if (f / "results").is_dir()), here / "results")


def newest_run(results: Path | None = None) -> Path:
    """The newest run under runs/, else under reference/, that has a finished arm. Raises UserError where there is none."""
    results = results or results_folder()
    for folder in (results / "runs", results / "reference"):
        for run in reversed(find_runs(folder)):
            if any(run.glob("*/done.json")):
                return run
    raise UserError(f"No finished run found under {results}: {MAKE_A_RUN}.")
