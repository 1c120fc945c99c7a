"""A config made ready to decode: questions, pair, engine, and the facts that name what is decoded."""

import random
from dataclasses import asdict, dataclass, replace

import torch

from gammatune.config import DecodeConfig, RunConfig
from gammatune.decoding.loop import Engine, build_engine, prefill, run_round, start_turn
from gammatune.drafters.base import Drafter
from gammatune.drafters.known import KnownText
from gammatune.drafters.model import DraftModel
from gammatune.models.pair import Pair, load_pair
from gammatune.policies.probe import Probe, WatchingProbe
from gammatune.policies.session import PolicySession
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import Question, QuestionSet, load_questions

DEPTH = 24  # draft steps that tables record, and the longest block of an adaptive policy that is warmed up


@dataclass
class Session:
    """What every command that loads a pair works with."""

    config: RunConfig
    questions: QuestionSet
    engine: Engine

    @property
    def pair(self) -> Pair:
        return self.engine.pair

    def prompt(self, question: Question, turn: int, answers: list[str]) -> list[int]:
        """Token ids of a question's prompt; answers: to its earlier turns."""
        return build_prompt(self.pair.chat_template, self.pair.tokenizer, question.turns[: turn + 1], answers)

    def budget(self, prompt_tokens: int) -> int:
        """Tokens that an answer to a prompt of this length may have."""
        return min(self.config.decode.max_new_tokens, self.pair.context - prompt_tokens)

    def turn_seed(self, question: Question, turn: int) -> int:
        """The same for all arms and repetitions, different for every turn."""
        return random.Random(f"{self.config.seed}/{question.question_id}/{turn}").getrandbits(63)

    def describe_work(self) -> dict:
        """What the committed text and the drafter's view of it depend on, device and dtype apart."""
        tasks = asdict(self.config.tasks) | {"checksum": self.questions.checksum}
        tasks.pop("path")  # the checksum says which file it was
        roles = (self.config.model_pair.target, self.config.model_pair.draft)
        return {
            "pair": self.pair.name,
            "weights": self.pair.identity,
            "random_weights": self.pair.random_weights,
            "quantization": [role.quantization for role in roles],
            "chat_template": self.pair.chat_template,
            "tasks": tasks,
            "decode": asdict(self.config.decode),
            "drafter": self.engine.drafter.identity,
        }

    def describe_place(self) -> dict:
        return {"device": self.pair.device.type, "dtype": str(self.pair.dtype).split(".")[-1]}

    def table_facts(self, depth: int) -> dict:
        """What an acceptance table says about itself. depth: recorded steps."""
        traced = {"runtime": self.engine.runtime, "gamma_max": depth}
        traced |= {"forwards_per_token": int(self.engine.drafter.needs_draft_model)}
        return {**self.describe_work(), **self.describe_place(), **traced}

    def warm_up(self, longest: int, watched: bool) -> None:
        """Run every block length up to `longest` once, unlogged: first calls pay for allocations and kernel choices.

        Shorter blocks than a policy plans occur in every run: the budget and the end of the sequence cut them.
        """
        if self.engine.target.records_graphs:  # else counting every question's tokens would be for nothing
            self.engine.warm(DEPTH, min(self.longest_text(), self.pair.context))
        prompt = self.prompt(self.questions.questions[0], 0, [])
        prompt = prompt[-min(len(prompt), 64, self.pair.context // 2) :]
        engine = replace(self.engine, ends=frozenset())
        if not engine.drafter.needs_draft_model:
            # a drafter that is no model proposes when it pleases; a known text has a block of every length
            engine = engine.with_drafter(KnownText(answer=prompt * (longest + 1)))
        probe = WatchingProbe if watched and engine.drafter.signals else Probe
        for gamma in range(min(longest, self.pair.context // 2 - 2) + 1):
            # three tokens are prefilled as two, which is what a draft is fed after a full acceptance
            asked = prompt[-3:] if gamma else prompt
            turn = start_turn(engine, asked, PolicySession(probe(gammas=[gamma])), DecodeConfig(max_new_tokens=gamma + 1))
            prefill(turn)
            run_round(turn)

    def longest_text(self) -> int:
        """Tokens of the longest question with all its answers."""
        answer = self.config.decode.max_new_tokens
        asked = [(question, len(question.turns)) for question in self.questions.questions]
        return max(len(self.prompt(q, turns - 1, [""] * (turns - 1))) + turns * answer for q, turns in asked)


def open_session(config: RunConfig, endless: bool = False) -> Session:
    """Load what a config names. endless: nothing ends an answer, for measuring. Raises UserError."""
    drafter: Drafter = config.drafter or DraftModel()
    questions = load_questions(config.tasks)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    needs = drafter.needs_draft_model
    pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype, with_draft=needs)
    if endless:
        pair = replace(pair, eos_ids=())
    engine = build_engine(pair, config.runtime.name, drafter, config.runtime.threads, release=True)
    return Session(config, questions, engine)
