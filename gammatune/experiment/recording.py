"""`python -m gammatune record`: the acceptance table of a pair on a task set; also made of every greedy run's own answers.

results/acceptance/<pair>-<tasks>-<hash>/
    config.json         everything that the hash is made of
    provenance.json     where and with what, written before the first forward
    parts/              one small table per question, so that a killed recording goes on
    acceptance.parquet  all of them, written last
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from gammatune.config import RunConfig
from gammatune.decoding.loop import generate_autoregressive
from gammatune.errors import UserError
from gammatune.experiment.cells import content_hash, hold_folder, read_json, write_json
from gammatune.experiment.provenance import describe_environment
from gammatune.models.pairs import load_pair
from gammatune.models.runtime import PairRuntime, eager_runtime
from gammatune.replay.known import confirm_answer
from gammatune.replay.record import Answered, trace_answer
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, join_tables, read_table, write_table
from gammatune.rounds import SCHEMA
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.tasks.specbench import Question, load_questions

TABLE_FILE = "acceptance.parquet"
GAMMA_MAX = 24


@dataclass
class Recording:
    """A folder that fills question by question. facts: what every part says about itself."""

    folder: Path
    facts: dict

    def part(self, question: Question) -> Path:
        return self.folder / "parts" / f"{question.question_id}.parquet"

    def lacks(self, question: Question) -> bool:
        return not self.part(question).exists()

    def keep(self, question: Question, turns: list[AcceptanceTurn]) -> None:
        self.part(question).parent.mkdir(parents=True, exist_ok=True)
        write_table(AcceptanceTable(turns, self.facts), self.part(question))

    def finish(self, questions: list[Question]) -> Path:
        """Join the parts in the order of the questions; returns the table's path."""
        path = self.folder / TABLE_FILE
        write_table(join_tables([read_table(self.part(question)) for question in questions], self.facts), path)
        return path


def describe_pair(pair, config: RunConfig) -> dict:
    """What the committed text and the draft's view of it depend on; the number of threads and the clock are not among it."""
    return {
        "pair": pair.name,
        "weights": pair.identity,
        "random_weights": pair.random_weights,
        "quantization": [role.quantization for role in (config.model_pair.target, config.model_pair.draft)],
        "chat_template": pair.chat_template,
        "decode": asdict(config.decode),
        "dtype": str(pair.dtype).split(".")[-1],
        "device": pair.device.type,
    }


class Recorder:
    """The record verb: answer every question with the target alone, then walk the draft along the answers."""

    def __init__(self, config: RunConfig, out: Path, gamma_max: int, known: dict | None = None):
        if not config.decode.greedy:
            raise UserError("An acceptance table exists for greedy decoding only: set decode=greedy.")
        if not 1 <= gamma_max <= 120:
            raise UserError(f"--gamma-max {gamma_max} must lie between 1 and 120.")
        self.config = config
        self.known = known or {}
        self.questions = load_questions(config.tasks)
        if config.runtime.threads is not None:
            torch.set_num_threads(config.runtime.threads)
        self.pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
        self.runtime: PairRuntime = eager_runtime(self.pair)
        tasks = asdict(config.tasks) | {"checksum": self.questions.checksum}
        tasks.pop("path")
        facts = {**describe_pair(self.pair, config), "tasks": tasks, "gamma_max": gamma_max}
        name = f"{self.pair.name}-{config.tasks.name}-{content_hash({'schema': SCHEMA, **facts})}"
        self.recording = Recording(out / name, facts)

    def run(self) -> Path:
        """Record what is missing; returns the table's path. Complete questions stay on disk whatever happens."""
        folder, questions = self.recording.folder, self.questions.questions
        with hold_folder(folder):
            self.stamp()
            todo = [question for question in questions if self.recording.lacks(question)]
            for question in tqdm(todo, unit="question", disable=None, file=sys.stderr):
                self.recording.keep(question, self.record_question(question))
            return self.recording.finish(questions)

    def stamp(self) -> None:
        """Provenance of this session, on disk before the first forward."""
        write_json(self.recording.folder / "config.json", {"schema": SCHEMA, **self.recording.facts})
        path = self.recording.folder / "provenance.json"
        sessions = read_json(path)["sessions"] if path.exists() else []
        here = describe_environment(self.pair.device, self.pair.identity) | {"known_answers": len(self.known)}
        write_json(path, {"schema": SCHEMA, "sessions": [*sessions, here]})

    def record_question(self, question: Question) -> list[AcceptanceTurn]:
        turns, answers = [], []
        for index in range(len(question.turns)):
            prompt = build_prompt(self.pair.chat_template, self.pair.tokenizer, question.turns[: index + 1], answers)
            answered = self.answer(question, index, prompt)
            answers.append(answer_text(self.pair.tokenizer, answered.output_ids))
            turns.append(trace_answer(self.runtime, answered, self.recording.facts["gamma_max"]))
        return turns

    def answer(self, question: Question, index: int, prompt: list[int]) -> Answered:
        known = self.known.get((question.question_id, index))
        try:
            if known:
                made = confirm_answer(self.runtime, prompt, known, self.config.decode)
            else:
                made = generate_autoregressive(self.runtime, prompt, self.config.decode)
        except UserError as error:
            raise UserError(f"Question {question.question_id}: {error}") from error
        return describe_answer(self.runtime, self.config, (question, index), prompt, (made.output_ids, made.finish))


def describe_answer(runtime: PairRuntime, config: RunConfig, asked: tuple, prompt: list[int], answer: tuple) -> Answered:
    """asked: (question, turn). answer: (output ids, finish)."""
    (question, index), (output_ids, finish) = asked, answer
    return Answered(
        question_id=question.question_id,
        category=question.category,
        task=question.task,
        turn=index,
        prompt_ids=prompt,
        output_ids=output_ids,
        budget=min(config.decode.max_new_tokens, runtime.pair.context - len(prompt)),
        finish=finish,
    )
