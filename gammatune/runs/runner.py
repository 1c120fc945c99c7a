"""Run a plan: every arm on every question, interleaved, logged, resumable, and checked against the target's own output."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from gammatune.compose import plan_arms
from gammatune.config import RunConfig
from gammatune.decoding.loop import Generation, generate_speculative
from gammatune.errors import UserError, one_line
from gammatune.files import content_hash, hold_folder, read_derived, read_json, write_json
from gammatune.policies import Policy
from gammatune.policies.session import PolicyError, PolicySession
from gammatune.records import TurnLog
from gammatune.replay.prices import PRICES_FILE, PriceList, hand_prices, prices_to_json, read_prices
from gammatune.replay.table import TABLE_FILE, read_table
from gammatune.runs.acceptance import Recording, record_logged
from gammatune.runs.measure_prices import Plan, PriceRun, write_prices
from gammatune.runs.monitor import watch_machine
from gammatune.runs.provenance import describe_environment, gpu_uuid, measure_peaks
from gammatune.runs.session import DEPTH, Session, naming, open_session
from gammatune.runs.store import NOT_OURS, Cell, Kept, RunFolder, open_run, read_log, read_provenance
from gammatune.runs.texts import has_texts, name_ids, write_texts
from gammatune.runs.verdicts import group_questions, judge_cell
from gammatune.runtimes.finite import NonFiniteError
from gammatune.tasks.prompts import answer_text
from gammatune.tasks.questions import Question


@dataclass
class Progress:
    """What one arm still has to do."""

    cell: Cell
    session: PolicySession
    kept: Kept
    failure: str | None = None  # the first error, after which the arm is left alone

    def lacks(self, repetition: int, question: Question) -> bool:
        return self.failure is None and (repetition, question.question_id) not in self.kept.complete

    def reopen(self) -> None:
        """Prepare to answer more, from the state in which the policy was left."""
        self.cell.reopen()
        if self.kept.last is not None:
            with self.failing():
                self.session.restore(self.kept.last.policy_after)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What the policy does wrong in this block ends the arm."""
        try:
            yield
        except PolicyError as error:
            self.failure = str(error)


class Runner:
    """Everything a run holds while it works."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.given = None if config.prices is None else read_prices(Path(config.prices))
        self.session: Session = open_session(config)
        self.questions: list[Question] = self.session.questions.questions
        name = f"{self.session.pair.name}-{config.tasks.name}"
        self.folder: RunFolder = open_run(Path(config.results), name, self.shared(), plan_arms(config))

    def shared(self) -> dict:
        """What all arms have in common; together with a policy's settings it names a cell."""
        runtime = {"name": self.session.engine.runtime, **self.session.describe_place()}
        runtime |= {"threads": self.config.runtime.threads}
        prices = {} if self.given is None else {"prices": content_hash(prices_to_json(self.given))}
        return {**self.session.describe_work(), "runtime": runtime, "seed": self.config.seed, **prices}

    def describe_plan(self) -> str:
        """One line per arm: label, cell, and whether it is finished, started or new."""
        lines = [f"{cell.arm.label:24} {cell.folder.name:40} {self.progress_word(cell)}" for cell in self.folder.cells]
        return "\n".join([f"{self.folder.path}: {len(self.questions)} questions", *lines])

    def progress_word(self, cell: Cell) -> str:
        done = cell.read_done()
        if done:
            return done.get("status", "error")
        return "started" if cell.turns_file.exists() else "new"

    def run(self) -> None:
        """Run what is missing, and make what is made of it where that is missing or damaged.

        Complete questions stay on disk whatever happens. Raises UserError for an unusable folder.
        """
        with hold_folder(self.folder.path):
            here = describe_environment(self.session.pair.device, self.session.pair.identity)
            progress = [self.open_cell(cell, here) for cell in self.folder.cells]
            self.write_header()
            unfinished = [arm for arm in progress if self.missing(arm)]
            if unfinished and self.session.engine.choice:
                print(f"gammatune: runtime=auto takes {self.session.engine.choice}.", file=sys.stderr)
            if unfinished:
                self.hand_prices(unfinished)
                for arm in unfinished:
                    arm.reopen()
                with watch_machine(self.folder.path / "machine.jsonl", gpu=gpu_uuid(self.session.pair.device)):
                    self.warm_up(progress)
                    self.answer_all(progress)
            settled = self.finish(progress)
            self.leave_table()
            self.leave_texts(anew=not settled)

    def open_cell(self, cell: Cell, here: dict) -> Progress:
        """Continue where the cell stopped; provenance is on disk before the first forward."""
        cell.create()
        done = cell.read_done()
        if done is None:
            cell.reopen()
        else:
            cell.refuse_changed(done)
        kept = cell.resume(self.questions)
        self.stamp(cell, here)
        return Progress(cell, PolicySession(cell.arm.policy), kept)

    def stamp(self, cell: Cell, here: dict) -> None:
        path = cell.folder / "provenance.json"
        there = read_derived(path, read_provenance) or {**here, "sessions": []}
        if cell.turns_file.exists() and cell.turns_file.stat().st_size and there["device"] != one_line(here["device"]):
            raise UserError(
                f"{cell.folder} was started on {there['device']}, this is {here['device']}: times of two "
                "machines do not mix, so choose another folder with results=FOLDER."
            )
        write_json(path, there | {"sessions": [*there.get("sessions", []), here["time"]]})

    def write_header(self) -> None:
        header, shared = self.folder.path / "run.json", self.shared()
        read_derived(header, partial(read_json, remedy=NOT_OURS))  # refuses a newer one
        arms = [
            {
                "label": cell.arm.label,
                "policy": cell.arm.policy_name,
                "gamma": cell.arm.gamma,
                "settings": cell.arm.settings,
                "cell": cell.folder.name,
            }
            for cell in self.folder.cells
        ]
        write_json(
            header,
            {
                "run": content_hash([c.content for c in self.folder.cells]),
                "name": self.folder.path.name,
                **shared,
                "runtime_choice": self.session.engine.choice,
                "arms": arms,
            },
        )

    def hand_prices(self, progress: list[Progress]) -> None:
        """Tell the policies that ask for them what rounds cost: the same for all, in every session of the run."""
        asking, forwards = [], self.session.engine.drafter.forwards_per_token
        for arm in progress:
            with arm.failing():
                asking += [arm] if arm.session.needs_prices else []
        if not asking:
            return
        curve = self.find_prices()
        for arm in asking:
            with arm.failing():
                hand_prices(arm.session.policy, curve, forwards)

    def find_prices(self) -> PriceList:
        """Those that the run was begun with, else those given, else measured now. Raises UserError for a damaged file."""
        path = self.folder.path / PRICES_FILE
        if path.exists():
            return read_prices(path)
        curve = self.given or PriceRun(self.session, Plan.brief(self.session.pair.context)).run()
        write_prices(curve, path)
        return read_prices(path)

    def missing(self, progress: Progress) -> int:
        return sum(
            progress.lacks(repetition, question)
            for repetition in range(self.config.repetitions)
            for question in self.questions
        )

    def warm_up(self, progress: list[Progress]) -> None:
        """Every block length that the arms can meet, as far as that can be known."""
        longest, watched, late = 0, False, False
        for arm in progress:
            with arm.failing():
                longest = max(longest, longest_block(arm))
                watched = watched or arm.session.watches_draft
                late = late or arm.session.reads_text
        self.session.warm_up(longest, watched, late)

    def answer_all(self, progress: list[Progress]) -> None:
        """Question by question, all arms next to each other, the order rotated so that drift hits every arm alike."""
        total = sum(self.missing(arm) for arm in progress)
        with tqdm(total=total, unit="answer", disable=None, file=sys.stderr) as bar:
            for repetition in range(self.config.repetitions):
                self.start_repetition(progress, repetition)
                for position, question in enumerate(self.questions):
                    turn = (position + repetition) % len(progress)
                    for arm in progress[turn:] + progress[:turn]:
                        if arm.lacks(repetition, question):
                            self.answer(arm, question, repetition, bar)

    def start_repetition(self, progress: list[Progress], repetition: int) -> None:
        """Each pass starts with fresh policies, unless it goes on where an interrupted one stopped."""
        for arm in progress:
            if arm.failure or any(done == repetition for done, _ in arm.kept.complete):
                continue
            with arm.failing():
                arm.session.restart()

    def answer(self, progress: Progress, question: Question, repetition: int, bar: tqdm) -> None:
        """Answer one question with one arm and log it; an error ends that arm only."""
        label = progress.cell.arm.label
        try:
            turns = self.answer_turns(progress.session, question, repetition)
        except (PolicyError, NonFiniteError, RuntimeError, ValueError, IndexError) as error:
            unnamed = f"Question {question.question_id}: {type(error).__name__}: {error}"
            progress.failure = str(error) if isinstance(error, UserError) else unnamed
            bar.write(f"{label} failed. {progress.failure}", file=sys.stderr)
            return
        progress.cell.append(turns)
        tokens, rounds = sum(len(turn.output_ids) for turn in turns), sum(len(turn.rounds) for turn in turns)
        rate = tokens / sum(turn.wall_ms for turn in turns) * 1e3
        bar.set_description(f"{label} {question.task}")
        bar.set_postfix_str(f"{rate:.1f} tokens/s, {tokens / rounds:.2f} accepted")
        bar.update()

    def answer_turns(self, session: PolicySession, question: Question, repetition: int) -> list[TurnLog]:
        """All turns of a question; a later turn sees this arm's own earlier answers."""
        turns, answers = [], []
        for index in range(len(question.turns)):
            prompt = self.session.prompt(question, index, answers)
            seed = self.session.turn_seed(question, index)
            with naming(question, index):
                session.start(question.question_id, index)
                made = generate_speculative(self.session.engine, prompt, session, self.config.decode, seed)
            answers.append(answer_text(self.session.pair.tokenizer, made.output_ids))
            turns.append(log_turn(question, index, len(prompt), made, repetition))
            turns[-1].policy_after = session.state()
        return turns

    def finish(self, progress: list[Progress]) -> bool:
        """Each arm's last word, judged against the reference; whether all of them were there already.

        An error is judged again although nothing was added: a kill may have come between the last word of a reference that
        has come right and that of an arm which it had failed.
        """
        settled = all(done and done.get("status") != "error" for done in (arm.cell.read_done() for arm in progress))
        if settled:
            return True
        reference = list(group_questions(self.folder.reference))
        for arm in progress:
            summary = judge_cell(self.session, reference, arm.cell, self.config.decode.greedy)
            if arm.failure or progress[0].failure:
                summary |= {"status": "error", "error": arm.failure or f"no baseline: ar failed. {progress[0].failure}"}
            arm.cell.finish(summary | measure_peaks(self.session.pair.device))
        return False

    def leave_table(self) -> None:
        """The acceptance table of this run's own answers: replay checks the run, and any other policy can be replayed."""
        reference = self.folder.reference
        if not (self.config.acceptance and self.config.decode.greedy) or reference.read_done().get("status") != "ok":
            return
        recording = Recording(self.folder.path, self.session.table_facts(DEPTH))
        if recording.finished():
            return
        answers = [turns for turns in group_questions(reference) if turns[0].repetition == 0]
        try:
            record_logged(self.session, recording, answers)
        except NonFiniteError as error:  # of the draft: the target's own answers are there, and are reported
            print(f"gammatune: no acceptance table is left. {error}", file=sys.stderr)

    def leave_texts(self, anew: bool) -> None:
        """anew: though they are there, since answers were added."""
        if not anew and has_texts(self.folder.pieces_file):
            return
        cells, table = self.folder.cells, self.folder.path / TABLE_FILE
        ids = {token for cell in cells for logged in read_log(cell.turns_file) for token in logged.turn.output_ids}
        if table.exists():
            ids |= name_ids(read_table(table))
        write_texts(self.folder.pieces_file, self.session.pair.tokenizer, ids, self.questions)


def longest_block(progress: Progress) -> int:
    """Its gamma; at least DEPTH for a policy that learns, and for one whose plan is no setting. Raises PolicyError."""
    arm = progress.cell.arm
    gamma, learns = arm.gamma, type(arm.policy).observe is not Policy.observe
    if not progress.session.drafts:
        return 0
    return max(gamma or 0, DEPTH if learns or gamma is None else 0)


def log_turn(question: Question, index: int, prompt_tokens: int, made: Generation, repetition: int) -> TurnLog:
    return TurnLog(
        question_id=question.question_id,
        category=question.category,
        task=question.task,
        turn=index,
        prompt_tokens=prompt_tokens,
        output_ids=made.output_ids,
        finish=made.finish,
        prefill_ms=made.prefill_ms,
        wall_ms=made.wall_ms,
        rounds=made.rounds,
        repetition=repetition,
    )
