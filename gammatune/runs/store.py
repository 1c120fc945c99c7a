"""Where runs live on disk: one folder per run, one cell (folder) per arm, each named by a hash of what it contains.

    results/runs/<pair>-<tasks>-<run hash>/
        run.json                 what was run: pair, tasks, decode, runtime, arms
        pieces.json              token id -> text, and the questions' beginnings (gammatune.runs.texts)
        machine.jsonl            clocks and load, sampled while answers were made
        acceptance.parquet       what the drafter would propose at each position of the answers (greedy runs)
        <label>-<cell hash>/
            config.json          everything that the hash is made of
            provenance.json      where and with what, written before the first forward
            turns.jsonl          one TurnLog per line, appended question by question
            done.json            status, written last

A finished cell is skipped, an unfinished one continues after its last complete question. What is made of the answers
(pieces, done, acceptance) is made again by the same command where it is missing or damaged. Reports read only arms whose
cell ended `ok`; every other arm is named, with the reason, in `StoredRun.left_out`. Nothing here loads a model.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from gammatune.compose import Arm
from gammatune.errors import UserError, one_line, printable
from gammatune.files import content_hash, read_derived, read_json, write_json
from gammatune.records import SCHEMA, NewerFileError, TurnLog, is_count
from gammatune.runs import frames
from gammatune.runs.monitor import read_samples
from gammatune.tasks.questions import Question

BASELINE = "ar"
PIECES_FILE = "pieces.json"
MAKE_A_RUN = "make a run with `python run.py`"
REWRITTEN = "run the same command again, which writes it anew from what is stored"
GOES_ON = "run the same command again, which goes on from the lines before it"
NOT_OURS = "give the folder of a run; where this is one, run its command again, which writes run.json anew"
STATUSES = ("ok", "wrong_output", "error")
LONGEST_NAME = 200  # bytes of a label or a cell's name, both of which become names of files


@dataclass
class LoggedTurn:
    """A line of turns.jsonl."""

    bytes: int  # of the line, its newline included
    turn: TurnLog


def read_log(file: Path, remedy: str = GOES_ON) -> Iterator[LoggedTurn]:
    """The turns in file order, without a last line that a kill cut short. Raises UserError for a damaged line.

    remedy: what to do about one.
    """
    if not file.exists():
        return
    refuse_irregular(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield LoggedTurn(len(line), TurnLog.from_json(line, f"{file} line {number}", remedy))


def hash_file(file: Path) -> str:
    """Raises UserError for what is no regular file; one that is missing is empty."""
    if not file.exists():
        return hashlib.sha256(b"").hexdigest()
    refuse_irregular(file)
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def refuse_irregular(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file} is no regular file: {make_cell_again(file.parent)}.")


def make_cell_again(cell: Path) -> str:
    """What to do about a cell whose answers or origin are lost."""
    return f"delete the folder {cell} and run the same command again"


@dataclass
class Kept:
    """What an unfinished log holds, up to its last complete question."""

    complete: set[tuple[int, int]] = field(default_factory=set)  # (repetition, question id)
    last: TurnLog | None = None
    bytes: int = 0


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
        """None where the cell has not finished, or done.json is damaged: what it said can be found in the log again."""
        return read_derived(self.done_file, read_done)

    def refuse_changed(self, done: dict) -> None:
        """Raises UserError when the log is no longer the one that the cell finished with."""
        if done.get("sha256") != hash_file(self.turns_file):
            raise UserError(
                f"{self.turns_file} was changed or cut short after it was finished: delete the folder "
                f"{self.folder} and run again."
            )

    def reopen(self) -> None:
        """Delete done.json before the log changes whose checksum it holds."""
        self.done_file.unlink(missing_ok=True)

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.json"
        stored = read_derived(config, partial(read_json, remedy=REWRITTEN))
        if stored is None:
            write_json(config, self.content)
        elif content_hash(stored) != content_hash(self.content):
            raise UserError(
                f"{config} does not describe this run (another pair, policy or task set): delete the folder "
                f"{self.folder}, or choose another with results=FOLDER."
            )

    def resume(self, questions: list[Question]) -> Kept:
        """Cut the log after its last complete question, and before a damaged line, which is told."""
        turns_of, kept, position = {question.question_id: len(question.turns) for question in questions}, Kept(), 0
        try:
            for logged in read_log(self.turns_file):
                position, turn = position + logged.bytes, logged.turn
                if turn.turn + 1 == turns_of.get(turn.question_id):
                    kept.complete.add((turn.repetition, turn.question_id))
                    kept.last, kept.bytes = turn, position
        except NewerFileError:
            raise
        except UserError:
            good = f"{self.turns_file} is damaged after its first {len(kept.complete)} questions"
            print(printable(f"gammatune: {good}, so the others are answered again."), file=sys.stderr)
        if self.turns_file.exists() and self.turns_file.stat().st_size != kept.bytes:
            os.truncate(self.turns_file, kept.bytes)
        return kept

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

    @property
    def pieces_file(self) -> Path:
        return self.path / PIECES_FILE


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
class Texts:
    """What ids and questions stand for."""

    pieces: dict[int, str] = field(default_factory=dict)  # of token ids
    questions: dict[int, list[str]] = field(default_factory=dict)  # beginnings of a question's turns; none in older files


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
        return self.texts.pieces

    @cached_property
    def texts(self) -> Texts:
        """Raises UserError as `pieces`."""
        return read_texts(self.path / PIECES_FILE)

    @cached_property
    def machine(self) -> pd.DataFrame:
        """Samples of the machine while the run worked: time, load, and clocks where known; empty where none were taken."""
        samples = read_samples(self.path / "machine.jsonl")
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
    """run.json with what every report needs. Raises UserError.

    The folder may come from a stranger: names that a report prints cannot steer a terminal, and those that become names of
    files cannot lead out of the folder.
    """
    file = path / "run.json"
    if not file.is_file():
        inside = [run.name for run in find_runs(path)] if path.is_dir() else []
        example = path / inside[0] if inside else "results/runs/NAME"
        hint = f"give the folder of one run, such as {example}" + ("" if inside else f", or {MAKE_A_RUN}")
        raise UserError(f"{path} holds no run.json, so it is no run: {hint}.")
    facts = read_json(file, NOT_OURS)
    if fault := find_fault(facts):
        raise UserError(f"{file} is damaged ({fault}): {NOT_OURS}.")
    harmless = {"pair": one_line(facts["pair"]), "runtime": escape_texts(facts["runtime"])}
    return facts | harmless | {"arms": [escape_texts(arm) for arm in facts["arms"]]}


KINDS = {"pair": str, "tasks": dict, "runtime": dict, "arms": list}


def find_fault(facts: dict) -> str:
    """What no run wrote into its run.json, "" where everything could be."""
    for name, kind in KINDS.items():
        if not isinstance(facts.get(name), kind):
            return f"{name} is missing or no {kind.__name__}"
    for arm in facts["arms"]:
        wanted = {"label", "policy", "gamma", "cell"}
        if not isinstance(arm, dict) or (missing := wanted - arm.keys()):
            return f"an arm without {', '.join(sorted(missing))}" if isinstance(arm, dict) else "an arm that is none"
        for name in ("label", "cell"):
            if not is_plain_name(arm[name]):
                return f"the {name} of an arm is no plain name"
        gamma, settings = arm["gamma"], arm.get("settings", {})
        if not isinstance(arm["policy"], str) or not isinstance(settings, dict) or not (gamma is None or is_count(gamma)):
            return f"the policy of {arm['label']} is none"
    if len({arm["label"] for arm in facts["arms"]}) < len(facts["arms"]):
        return "two arms have one label"
    return "" if facts["arms"] else "it has no arms"


def is_plain_name(name) -> bool:
    """Whether a text can be the name of a file in a given folder, and of none elsewhere."""
    if not isinstance(name, str) or name.startswith(".") or one_line(name) != name:
        return False
    return 0 < len(name.encode()) <= LONGEST_NAME and not {"/", "\\"} & set(name)


def is_piece(item: tuple) -> bool:
    token, text = item
    return token.isascii() and token.isdigit() and len(token) <= 10 and isinstance(text, str)


def is_question(item: tuple) -> bool:
    key, turns = item
    number = key.removeprefix("-")
    named = number.isascii() and number.isdigit() and len(number) <= 20
    return named and isinstance(turns, list) and all(isinstance(text, str) for text in turns)


def read_texts(file: Path) -> Texts:
    """Of a run or of a recorded table. Raises UserError where the file is missing or damaged."""
    stored = read_json(file, REWRITTEN, bare=True)
    pieces = stored["pieces"] if "pieces" in stored else {key: text for key, text in stored.items() if key != "schema"}
    if not isinstance(pieces, dict) or not pieces or not all(map(is_piece, pieces.items())):
        raise UserError(f"{file} is damaged (something else than texts of token ids): {REWRITTEN}.")
    questions = stored.get("questions", {}) if "pieces" in stored else {}
    if not isinstance(questions, dict) or not all(map(is_question, questions.items())):
        raise UserError(f"{file} is damaged (something else than texts of questions): {REWRITTEN}.")
    return Texts(*({int(key): text for key, text in texts.items()} for texts in (pieces, questions)))


def escape_texts(content: dict) -> dict:
    return {key: one_line(value) if isinstance(value, str) else value for key, value in content.items()}


def read_arm(path: Path, described: dict) -> StoredArm:
    """One arm of run.json with what its cell holds; turns are read where the cell finished without an error."""
    arm = StoredArm(*(described[key] for key in ("label", "policy", "gamma", "cell")), described.get("settings", {}))
    cell = path / arm.cell
    if not (cell / "done.json").is_file():
        return arm
    arm.done = read_done(cell / "done.json")
    arm.status = arm.done["status"]
    if arm.status == "error":
        return arm
    arm.provenance = read_provenance(cell / "provenance.json")
    arm.turns = read_turns(cell / "turns.jsonl", arm.done)
    return arm


def read_done(file: Path) -> dict:
    """How a cell ended. Raises UserError."""
    done = read_json(file, REWRITTEN)
    exact, ties = done.get("exact"), done.get("near_ties") or 0
    if done.get("status") not in STATUSES or not (exact is None or isinstance(exact, bool)) or not is_count(ties):
        raise UserError(f"{file} is damaged (its status or its counts are none): {REWRITTEN}.")
    return done


def read_provenance(file: Path) -> dict:
    """Where a cell was made. Raises UserError."""
    remedy = make_cell_again(file.parent)
    stored = escape_texts(read_json(file, remedy))
    try:
        datetime.fromisoformat(stored["time"])
        sound = isinstance(stored["device"], str) and isinstance(stored.get("sessions", []), list)
        sound = sound and isinstance(stored.get("git") or "", str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{file} is damaged (its device, time or sessions are none): {remedy}.")
    return stored


def read_turns(file: Path, done: dict) -> list[TurnLog]:
    """All turns of a finished cell. Raises UserError where the bytes are not those that the run finished with."""
    remedy = make_cell_again(file.parent)
    if hash_file(file) != done.get("sha256"):
        raise UserError(f"{file} was changed or cut short after its run (checksum differs from done.json): {remedy}.")
    turns = [logged.turn for logged in read_log(file, remedy)]
    if not turns:
        raise UserError(f"{file} is damaged (it holds no answers): {remedy}.")
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
