"""Run a plan: every arm on every question, interleaved, logged, resumable, and checked against the target's own output."""

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from gammatune.compose import plan_arms
from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Generation, generate_speculative
from gammatune.errors import UserError
from gammatune.models.pair import Pair, load_pair
from gammatune.policies import POLICIES
from gammatune.records import SCHEMA, TurnLog
from gammatune.runs.acceptance import GAMMA_MAX, Recording, describe_place, describe_work, record_answers, table_facts
from gammatune.runs.cells import Cell, RunFolder, content_hash, hold_folder, open_run, read_json, write_json
from gammatune.runs.monitor import watch_machine
from gammatune.runs.provenance import describe_environment, measure_peaks
from gammatune.runs.verdicts import group_questions, judge_cell, write_pieces
from gammatune.runtimes.base import PairRuntime, build_runtime, eager_runtime
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.tasks.questions import Question, QuestionSet, load_questions


@dataclass
class Progress:
    """What one arm still has to do. failure: the first error, after which the arm rests."""

    cell: Cell
    complete: set[tuple[int, int]] = field(default_factory=set)
    failure: str | None = None

    def lacks(self, repetition: int, question: Question) -> bool:
        return self.failure is None and (repetition, question.question_id) not in self.complete


class Runner:
    """Everything a run holds while it works."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.questions: QuestionSet = load_questions(config.tasks)
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        self.pair: Pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
        self.runtime: PairRuntime = build_runtime(self.pair, config.runtime.name)
        name = f"{self.pair.name}-{config.tasks.name}"
        self.folder: RunFolder = open_run(Path(config.results), name, self.shared(), plan_arms(config))

    def shared(self) -> dict:
        """What all arms have in common; together with a policy's settings it names a cell."""
        return {
            **describe_work(self.pair, self.config, self.questions.checksum),
            "runtime": {
                "name": self.runtime.name,
                **describe_place(self.pair),
                "threads": self.config.runtime.threads,
            },
            "seed": self.config.seed,
        }

    def describe_plan(self) -> str:
        """One line per arm: label, cell, and whether it is finished, started or new."""
        lines = [f"{cell.arm.label:24} {cell.folder.name:40} {self.progress_word(cell)}" for cell in self.folder.cells]
        return "\n".join([f"{self.folder.path}: {len(self.questions.questions)} questions", *lines])

    def progress_word(self, cell: Cell) -> str:
        done = cell.read_done()
        if done:
            return done["status"]
        return "started" if cell.turns_file.exists() else "new"

    def run(self) -> None:
        """Run what is missing; complete questions stay on disk whatever happens. Raises UserError for an unusable folder."""
        with hold_folder(self.folder.path):
            here = describe_environment(self.pair.device, self.pair.identity)
            progress = [self.open_cell(cell, here) for cell in self.folder.cells]
            self.write_header()
            unfinished = [arm for arm in progress if self.missing(arm)]
            if unfinished:
                for arm in unfinished:
                    arm.cell.reopen()
                with watch_machine(self.folder.path / "machine.jsonl"):
                    self.warm_up()
                    self.answer_all(progress)
            if not all(arm.cell.read_done() for arm in progress):
                self.finish(progress)
            self.leave_table()

    def open_cell(self, cell: Cell, here: dict) -> Progress:
        """Continue where the cell stopped; provenance is on disk before the first forward."""
        cell.create()
        cell.refuse_changed()
        complete, last = cell.resume(self.questions.questions)
        if last is not None:
            cell.arm.policy.restore(last.policy_after)
        self.stamp(cell, here)
        return Progress(cell, complete)

    def stamp(self, cell: Cell, here: dict) -> None:
        path = cell.folder / "provenance.json"
        if not path.exists():
            return write_json(path, {"schema": SCHEMA, **here, "sessions": [here["time"]]})
        there = read_json(path)
        if cell.turns_file.exists() and cell.turns_file.stat().st_size and there["device"] != here["device"]:
            raise UserError(
                f"{cell.folder} was started on {there['device']}, this is {here['device']}: times of two "
                "machines do not mix, so choose another folder with results=FOLDER."
            )
        return write_json(path, there | {"sessions": [*there["sessions"], here["time"]]})

    def write_header(self) -> None:
        header, shared = self.folder.path / "run.json", self.shared()
        if header.exists():
            read_json(header)
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
                "schema": SCHEMA,
                "run": content_hash([c.content for c in self.folder.cells]),
                "name": self.folder.path.name,
                **shared,
                "arms": arms,
            },
        )

    def missing(self, progress: Progress) -> int:
        return sum(
            progress.lacks(repetition, question)
            for repetition in range(self.config.repetitions)
            for question in self.questions.questions
        )

    def warm_up(self) -> None:
        """Run each block length once, unlogged: first calls pay for allocations and kernel choices."""
        prompt = build_prompt(self.pair.chat_template, self.pair.tokenizer, self.questions.questions[0].turns[:1], [])
        prompt = prompt[-min(len(prompt), self.pair.context // 2) :]
        if self.runtime.records_graphs:
            self.runtime.warm(GAMMA_MAX, min(self.longest_text(), self.pair.context))
        for gamma in sorted({0, *(cell.arm.gamma or 0 for cell in self.folder.cells)}):
            decode = DecodeConfig(max_new_tokens=gamma + 2)
            generate_speculative(self.runtime, prompt, POLICIES["fixed"](gamma=gamma), decode)

    def longest_text(self) -> int:
        """Tokens of the longest question with all its answers."""
        template, tokenizer, room = self.pair.chat_template, self.pair.tokenizer, self.config.decode.max_new_tokens
        turns = [question.turns for question in self.questions.questions]
        return max(len(build_prompt(template, tokenizer, said, [""] * (len(said) - 1))) + len(said) * room for said in turns)

    def answer_all(self, progress: list[Progress]) -> None:
        """Question by question, all arms next to each other, the order rotated so that drift hits every arm alike."""
        total = sum(self.missing(arm) for arm in progress)
        with tqdm(total=total, unit="answer", disable=None, file=sys.stderr) as bar:
            for repetition in range(self.config.repetitions):
                self.start_repetition(progress, repetition)
                for position, question in enumerate(self.questions.questions):
                    turn = (position + repetition) % len(progress)
                    for arm in progress[turn:] + progress[:turn]:
                        if arm.lacks(repetition, question):
                            self.answer(arm, question, repetition, bar)

    def start_repetition(self, progress: list[Progress], repetition: int) -> None:
        """Each pass starts with fresh policies, unless it goes on where an interrupted one stopped."""
        for arm in progress:
            if not any(done == repetition for done, _ in arm.complete):
                arm.cell.arm.policy.reset()

    def answer(self, progress: Progress, question: Question, repetition: int, bar: tqdm) -> None:
        """Answer one question with one arm and log it; an error ends that arm only."""
        label = progress.cell.arm.label
        try:
            turns = self.answer_turns(progress.cell, question, repetition)
        except UserError as error:
            raise UserError(f"Question {question.question_id}: {error}") from error
        except (RuntimeError, ValueError, IndexError) as error:
            progress.failure = f"question {question.question_id}: {type(error).__name__}: {error}"
            bar.write(f"{label} failed at {progress.failure}", file=sys.stderr)
            return
        progress.cell.append(turns)
        tokens, rounds = sum(len(turn.output_ids) for turn in turns), sum(len(turn.rounds) for turn in turns)
        rate = tokens / sum(turn.wall_ms for turn in turns) * 1e3
        bar.set_description(f"{label} {question.task}")
        bar.set_postfix_str(f"{rate:.1f} tokens/s, {tokens / rounds:.2f} accepted")
        bar.update()

    def answer_turns(self, cell: Cell, question: Question, repetition: int) -> list[TurnLog]:
        """All turns of a question; a later turn sees this arm's own earlier answers."""
        policy, tokenizer, turns, answers = cell.arm.policy, self.pair.tokenizer, [], []
        if policy.carry == "question":
            policy.reset()
        for index in range(len(question.turns)):
            if policy.carry == "turn":
                policy.reset()
            prompt = build_prompt(self.pair.chat_template, tokenizer, question.turns[: index + 1], answers)
            made = generate_speculative(self.runtime, prompt, policy, self.config.decode, self.turn_seed(question, index))
            answers.append(answer_text(tokenizer, made.output_ids))
            turns.append(log_turn(question, index, len(prompt), made, repetition))
            turns[-1].policy_after = policy.state()
        return turns

    def turn_seed(self, question: Question, index: int) -> int:
        """The same for all arms and repetitions, different for every turn."""
        return random.Random(f"{self.config.seed}/{question.question_id}/{index}").getrandbits(63)

    def finish(self, progress: list[Progress]) -> None:
        """Judge every arm against the reference and write its last word."""
        questions, reference, greedy = self.questions.questions, self.folder.reference, self.config.decode.greedy
        for arm in progress:
            summary = judge_cell(self.runtime, questions, reference, arm.cell, greedy)
            if arm.failure or progress[0].failure:
                summary |= {"status": "error", "error": arm.failure or f"no baseline: ar failed at {progress[0].failure}"}
            arm.cell.finish(summary | measure_peaks(self.pair.device))
        write_pieces(self.folder, self.pair.tokenizer)

    def leave_table(self) -> None:
        """The acceptance table of this run's own answers: replay checks the run, and any other policy can be replayed."""
        reference = self.folder.reference
        if not (self.config.acceptance and self.config.decode.greedy) or reference.read_done()["status"] != "ok":
            return
        facts = table_facts(self.pair, self.config, self.questions.checksum, GAMMA_MAX)
        answers = [turns for turns in group_questions(reference) if turns[0].repetition == 0]
        work = self.questions.questions, self.config.decode
        record_answers(eager_runtime(self.pair), Recording(self.folder.path, facts), answers, work)


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
