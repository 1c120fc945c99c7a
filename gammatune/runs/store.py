"""Reading stored runs: folders written by run.py become records and frames. Nothing here loads a model.

Only arms whose cell ended `ok` give numbers; every other arm is named, with the reason, in `StoredRun.left_out`.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from gammatune.errors import UserError
from gammatune.records import TurnLog, refuse_newer
from gammatune.report import frames

BASELINE = "ar"
MAKE_A_RUN = "make a run with `python run.py`"
UNUSABLE = "delete that folder and run it again"


@dataclass
class Arm:
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
    arms: list[Arm]
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

    def arm(self, label: str) -> Arm:
        """The ok arm of that label. Raises UserError that lists the labels there are."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise UserError(f"{self.name} has no finished arm {label}: choose one of {', '.join(a.label for a in self.arms)}.")

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Text of each output token id. Raises UserError where pieces.json is missing or damaged."""
        stored = read_json(self.path / "pieces.json")
        return {int(token): text for token, text in stored.items()}

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
        raise UserError(
            f"{path} has no finished arm to report on ({run.left_out_sentence()}): run the same command again to finish it."
        )
    return run


def read_facts(path: Path) -> dict:
    """run.json with the keys that every report needs. Raises UserError."""
    if not (path / "run.json").is_file():
        inside = [run.name for run in find_runs(path)] if path.is_dir() else []
        example = path / inside[0] if inside else "results/runs/NAME"
        hint = f"give the folder of one run, such as {example}" + ("" if inside else f", or {MAKE_A_RUN}")
        raise UserError(f"{path} holds no run.json, so it is no run: {hint}.")
    facts = read_json(path / "run.json")
    require_schema(facts, path / "run.json")
    if not isinstance(facts.get("arms"), list) or not {"pair", "tasks", "runtime"} <= facts.keys():
        raise UserError(f"{path / 'run.json'} is damaged (arms, pair, tasks or runtime missing): {UNUSABLE}.")
    return facts


def read_arm(path: Path, described: dict) -> Arm:
    """One arm of run.json with what its cell holds; turns are read where the cell finished without an error."""
    try:
        arm = Arm(*(described[key] for key in ("label", "policy", "gamma", "cell")), described.get("settings", {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'run.json'} is damaged (an arm without {error}): {UNUSABLE}.") from error
    cell = path / arm.cell
    if not (cell / "done.json").is_file():
        return arm
    arm.done = read_json(cell / "done.json")
    require_schema(arm.done, cell / "done.json")
    arm.status = arm.done.get("status", "error")
    if arm.status == "error":
        return arm
    arm.provenance = read_json(cell / "provenance.json")
    arm.turns = read_turns(cell / "turns.jsonl", arm.done)
    return arm


def read_turns(file: Path, done: dict) -> list[TurnLog]:
    """All turns of a finished cell. Raises UserError where the bytes are not those that the run finished with."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {UNUSABLE}.") from error
    if hashlib.sha256(content).hexdigest() != done.get("sha256"):
        raise UserError(f"{file} was changed or cut short after its run (checksum differs from done.json): {UNUSABLE}.")
    turns = [
        TurnLog.from_json(line, where=f"{file} line {number}")
        for number, line in enumerate(content.decode().splitlines(), 1)
    ]
    for turn in turns:
        if sum(r.emitted for r in turn.rounds) != len(turn.output_ids):
            raise UserError(f"{file} is damaged (the rounds of question {turn.question_id} do not add up): {UNUSABLE}.")
    return turns


def find_unlike(arms: list[Arm]) -> dict[str, str]:
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


def read_json(file: Path) -> dict:
    """A JSON object from a file. Raises UserError naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {UNUSABLE}.") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): {UNUSABLE}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged (no JSON object): {UNUSABLE}.")
    return content


def require_schema(content: dict, file: Path) -> None:
    """Raises UserError without a schema number, or for a newer one."""
    schema = content.get("schema")
    if not isinstance(schema, int):
        raise UserError(f"{file} is damaged (no schema number): {UNUSABLE}.")
    refuse_newer(schema, file)
