"""`python -m gammatune record`: the acceptance table of a pair on a task set; also made of every greedy run's own answers.

results/acceptance/<pair>-<tasks>-<hash>/
    config.json         everything that the hash is made of
    provenance.json     where and with what, written before the first forward
    parts/              one small table per question, so that a killed recording goes on; removed at the end
    acceptance.parquet  all of them
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Generation, generate_autoregressive
from gammatune.drafters.known import confirm_answer
from gammatune.drafters.trace import Answered, trace_answer
from gammatune.errors import UserError
from gammatune.models.pair import Pair, load_pair
from gammatune.records import SCHEMA, TurnLog
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, join_tables, read_table, write_table
from gammatune.runs.cells import content_hash, hold_folder, read_json, write_json
from gammatune.runs.provenance import describe_environment
from gammatune.runtimes.base import PairRuntime, build_runtime, eager_runtime
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.tasks.questions import Question, load_questions

TABLE_FILE = "acceptance.parquet"
GAMMA_MAX = 24


@dataclass
class Recording:
    """A folder that fills question by question. facts: what every part says about itself."""

    folder: Path
    facts: dict

    @property
    def table(self) -> Path:
        return self.folder / TABLE_FILE

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    def part(self, question: Question) -> Path:
        return self.parts / f"{question.question_id}.parquet"

    def complete(self, questions: list[Question], trace: Callable[[Question], list[AcceptanceTurn]]) -> Path:
        """Trace the questions that are missing, then join all parts in the order of the questions; the table's path."""
        if self.table.exists():
            return self.table
        self.parts.mkdir(exist_ok=True)
        missing = [question for question in questions if not self.part(question).exists()]
        for question in tqdm(missing, desc="recording", unit="question", disable=None, file=sys.stderr):
            write_table(AcceptanceTable(trace(question), self.facts), self.part(question))
        write_table(join_tables([read_table(self.part(question)) for question in questions], self.facts), self.table)
        shutil.rmtree(self.parts)
        return self.table


def describe_work(pair: Pair, config: RunConfig, checksum: str) -> dict:
    """What the committed text and the draft's view of it depend on, device and dtype apart."""
    tasks = asdict(config.tasks) | {"checksum": checksum}
    tasks.pop("path")  # the checksum says which file it was
    return {
        "pair": pair.name,
        "weights": pair.identity,
        "random_weights": pair.random_weights,
        "quantization": [role.quantization for role in (config.model_pair.target, config.model_pair.draft)],
        "chat_template": pair.chat_template,
        "tasks": tasks,
        "decode": asdict(config.decode),
    }


def describe_place(pair: Pair) -> dict:
    return {"device": pair.device.type, "dtype": str(pair.dtype).split(".")[-1]}


def table_facts(pair: Pair, config: RunConfig, checksum: str, gamma_max: int) -> dict:
    return {**describe_work(pair, config, checksum), **describe_place(pair), "gamma_max": gamma_max}


class Recorder:
    """The record verb: answer every question with the target alone, then walk the draft along the answers."""

    def __init__(self, config: RunConfig, out: Path, gamma_max: int, known: dict | None = None):
        if not config.decode.greedy:
            raise UserError("An acceptance table exists for greedy decoding only: set decode=greedy.")
        if not 1 <= gamma_max <= 120:
            raise UserError(f"--gamma-max {gamma_max} must lie between 1 and 120.")
        self.config = config
        self.known = known or {}
        self.answer_seconds = self.walk_seconds = 0.0
        self.questions = load_questions(config.tasks)
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        self.pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
        self.runtime: PairRuntime = build_runtime(self.pair, config.runtime.name)
        self.walker: PairRuntime = eager_runtime(self.pair)
        facts = table_facts(self.pair, config, self.questions.checksum, gamma_max)
        name = f"{self.pair.name}-{config.tasks.name}-{content_hash({'schema': SCHEMA, **facts})}"
        self.recording = Recording(out / name, facts)

    def run(self) -> Path:
        """Record what is missing; returns the table's path. Complete questions stay on disk whatever happens."""
        with hold_folder(self.recording.folder, "--out FOLDER"):
            if not self.recording.table.exists():
                self.stamp()
            return self.recording.complete(self.questions.questions, self.record_question)

    def stamp(self) -> None:
        """Provenance of this call, on disk before the first forward."""
        write_json(self.recording.folder / "config.json", {"schema": SCHEMA, **self.recording.facts})
        path = self.recording.folder / "provenance.json"
        sessions = read_json(path)["sessions"] if path.exists() else []
        here = describe_environment(self.pair.device, self.pair.identity) | {"known_answers": len(self.known)}
        write_json(path, {"schema": SCHEMA, "sessions": [*sessions, here]})

    def record_question(self, question: Question) -> list[AcceptanceTurn]:
        started, answered = time.perf_counter(), self.answer_seconds
        turns = trace_question(self.walker, self.recording, self.config.decode, question, self.answer)
        self.walk_seconds += time.perf_counter() - started - (self.answer_seconds - answered)
        return turns

    def describe_times(self) -> str:
        """What this call spent on the target's answers and on the draft beside them."""
        if not self.answer_seconds:
            return "Nothing was left to record."
        whole = self.answer_seconds + self.walk_seconds
        return (
            f"Answers of the target {self.answer_seconds:.1f} s, the draft beside them {self.walk_seconds:.1f} s: "
            f"{whole / self.answer_seconds:.2f} times the answers alone."
        )

    def answer(self, question: Question, index: int, prompt: list[int]) -> Generation:
        started = time.perf_counter()
        known = self.known.get((question.question_id, index))
        try:
            if known:
                made = confirm_answer(self.runtime, prompt, known, self.config.decode)
            else:
                made = generate_autoregressive(self.runtime, prompt, self.config.decode)
        except UserError as error:
            raise UserError(f"Question {question.question_id}: {error}") from error
        self.answer_seconds += time.perf_counter() - started
        return made


def record_answers(runtime: PairRuntime, recording: Recording, answers: list[list[TurnLog]], work: tuple) -> Path:
    """The table of answers that an autoregressive arm has logged, question by question. work: (questions, decode)."""
    questions, decode = work
    logs = {turns[0].question_id: turns for turns in answers}

    def look_up(question: Question, index: int, prompt: list[int]) -> TurnLog:
        return logs[question.question_id][index]

    return recording.complete(questions, lambda question: trace_question(runtime, recording, decode, question, look_up))


def trace_question(walker: PairRuntime, recording: Recording, decode: DecodeConfig, question: Question, answer) -> list:
    """All turns of a question [AcceptanceTurn]; answer(question, turn, prompt ids) -> a Generation or a TurnLog."""
    pair, said, turns = walker.pair, [], []
    for index in range(len(question.turns)):
        prompt = build_prompt(pair.chat_template, pair.tokenizer, question.turns[: index + 1], said)
        made = answer(question, index, prompt)
        said.append(answer_text(pair.tokenizer, made.output_ids))
        answered = describe_answer(walker, decode, (question, index), prompt, made)
        turns.append(trace_answer(walker, answered, recording.facts["gamma_max"]))
    return turns


def describe_answer(runtime: PairRuntime, decode: DecodeConfig, asked: tuple, prompt: list[int], made) -> Answered:
    """asked: (question, turn). made: a Generation or a TurnLog, which both hold output_ids and finish."""
    question, index = asked
    return Answered(
        question_id=question.question_id,
        category=question.category,
        task=question.task,
        turn=index,
        prompt_ids=prompt,
        output_ids=made.output_ids,
        budget=min(decode.max_new_tokens, runtime.pair.context - len(prompt)),
        finish=made.finish,
    )
