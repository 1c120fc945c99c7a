"""A config made ready to decode: questions, pair, engine, and the facts that name what is decoded."""

import random
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

import torch

from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Engine, build_engine, prefill, run_round, start_turn
from gammatune.drafters.base import Drafter
from gammatune.drafters.model import DraftModel
from gammatune.errors import UserError
from gammatune.models.pair import Pair, load_pair
from gammatune.policies.probe import Probe, WatchingProbe
from gammatune.policies.session import PolicySession
from gammatune.runs.overlong import count_needs, find_overlong
from gammatune.runtimes.finite import NonFiniteError
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import Question, QuestionSet, load_questions

DEPTH = 24  # draft steps that tables record, and the longest block of an adaptive policy that is warmed up


@dataclass
class Session:
    """What every command that loads a pair works with."""

    config: RunConfig
    questions: QuestionSet
    engine: Engine
    longest_text: int  # tokens of the longest question with all its answers
    overlong: list[int] = field(default_factory=list)  # ids of questions that were left out: too long for the pair

    @property
    def pair(self) -> Pair:
        return self.engine.pair

    def prompt(self, question: Question, turn: int, answers: list[str]) -> list[int]:
        """Token ids of a question's prompt; answers: to its earlier turns.

        A text can be read as more tokens than it was written in, such as halves of characters. Where earlier answers so
        grow beyond the context, the longest loses its end. Raises UserError where the tokenizer makes none of it, or tokens
        that the models do not have.
        """
        answers = list(answers)
        while True:
            ids = build_prompt(self.pair.chat_template, self.pair.tokenizer, question.turns[: turn + 1], answers)
            if not ids or not 0 <= min(ids) <= max(ids) < self.pair.vocab_size:
                made = f"token {max(ids)} of 0 to {self.pair.vocab_size - 1}" if ids else "no tokens at all"
                raise UserError(
                    f"The tokenizer of {self.pair.name} makes {made} of question {question.question_id}: use the tokenizer "
                    "that belongs to the model."
                )
            excess = len(ids) + 1 - self.pair.context
            if excess <= 0 or not any(answers):
                return ids
            longest = max(range(turn), key=lambda i: len(answers[i]))
            answers[longest] = answers[longest][:-excess]

    def budget(self, prompt_tokens: int) -> int:
        """Tokens that an answer to a prompt of this length may have."""
        return min(self.config.decode.max_new_tokens, self.pair.context - prompt_tokens)

    def turn_seed(self, question: Question, turn: int) -> int:
        """The same for all arms and repetitions, different for every turn."""
        return random.Random(f"{self.config.seed}/{question.question_id}/{turn}").getrandbits(63)

    def describe_work(self) -> dict:
        """What the committed text and the drafter's view of it depend on, device and dtype apart."""
        tasks = asdict(self.config.tasks) | {"checksum": self.questions.checksum}
        del tasks["path"], tasks["overlong"]  # the checksum says which file it was, and `overlong` below what was left out
        return {
            "pair": self.pair.name,
            "weights": self.pair.identity,
            "random_weights": self.pair.random_weights,
            "quantization": list(self.pair.quantization),
            "chat_template": self.pair.chat_template,
            "tasks": tasks,
            "decode": asdict(self.config.decode),
            "drafter": self.engine.drafter.identity,
            **({"overlong": self.overlong} if self.overlong else {}),
        }

    def describe_place(self) -> dict:
        return {"device": self.pair.device.type, "dtype": str(self.pair.dtype).split(".")[-1]}

    def table_facts(self, depth: int) -> dict:
        """What an acceptance table says about itself. depth: recorded steps."""
        traced = {"runtime": self.engine.runtime, "gamma_max": depth}
        traced |= describe_forwards(self.engine.drafter)
        return {**self.describe_work(), **self.describe_place(), **traced}

    def warm_up(self, longest: int, watched: bool, late: bool = False) -> None:
        """Run block lengths up to `longest` once, unlogged: first calls pay for allocations and kernel choices.

        late: whether the draft is asked about tokens that it reads late.

        Shorter blocks than a policy plans occur in every run: the budget and the end of the sequence cut them. Beyond DEPTH
        only the longest that can occur is run, since trying each of a thousand takes longer than what it saves.
        """
        if self.engine.target.records_graphs:
            self.engine.warm(DEPTH, min(self.longest_text, self.pair.context), late)
        prompt = self.prompt(self.questions.questions[0], 0, [])
        prompt = prompt[-min(len(prompt), 64, self.pair.context // 2) :]
        engine = replace(self.engine, ends=frozenset()).filling_blocks(prompt * (longest + 1))
        probe = WatchingProbe if watched and engine.drafter.signals else Probe
        longest = min(longest, self.config.decode.max_new_tokens - 1, self.pair.context // 2 - 2)
        for gamma in sorted({*range(min(longest, DEPTH) + 1), longest}):
            # three tokens are prefilled as two, which is what a draft is fed after a full acceptance
            asked = prompt[-3:] if gamma else prompt
            turn = start_turn(engine, asked, PolicySession(probe(gammas=[gamma])), DecodeConfig(max_new_tokens=gamma + 1))
            prefill(turn)
            with suppress(NonFiniteError):  # the arm that meets it says so, at its question
                run_round(turn)


def describe_forwards(drafter: Drafter) -> dict:
    """Facts of a table: draft forwards that a proposed token costs, at most and by who proposed it."""
    by_proposer = [member.forwards_per_token for member in drafter.members]
    several = {"forwards_by_proposer": by_proposer} if len(by_proposer) > 1 else {}
    rereads = {"rereads": True} if drafter.rereads else {}
    return {"forwards_per_token": drafter.forwards_per_token, **several, **rereads}


@contextmanager
def naming(question: Question, turn: int):
    """What goes wrong in an answer is told with its question and turn."""
    try:
        yield
    except UserError as error:
        where = f"Question {question.question_id}, turn {turn + 1} of {len(question.turns)}"
        raise type(error)(f"{where}: {error}") from error


def open_session(config: RunConfig, endless: bool = False) -> Session:
    """Load what a config names. endless: nothing ends an answer, for measuring. Raises UserError."""
    drafter: Drafter = config.drafter or DraftModel()
    questions = load_questions(config.tasks)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    where = config.runtime
    pair = load_pair(config.model_pair, where.device, where.dtype, with_draft=drafter.needs_draft_model)
    needs, overlong = count_needs(pair, questions.questions, config.decode.max_new_tokens), []
    if endless:  # prompts are cut to what is measured
        pair = replace(pair, eos_ids=())
    else:
        overlong = find_overlong(needs, pair, config)
        questions = replace(questions, questions=[q for q in questions.questions if q.question_id not in overlong])
    longest = max(need.tokens for need in needs if need.question_id not in overlong) + config.decode.max_new_tokens
    engine = build_engine(pair, where.name, drafter, where.threads, release=True)
    return Session(config, questions, engine, longest, overlong)
