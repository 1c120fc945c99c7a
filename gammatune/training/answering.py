"""Stages 1 and 2: prompts, and the target's answers to them, shard by shard."""

import math
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from gammatune.errors import UserError
from gammatune.models.pair import Pair
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.training.overlaps import Overlaps
from gammatune.training.prompts import Writer, mix_kinds
from gammatune.training.recipe import Recipe
from gammatune.training.shards import Answers, Making, Shard, write_shard
from gammatune.training.teacher import Answered, Teacher
from gammatune.training.texts import Texts

HELD_OUT = "held-out"
# Features are stored, not computed again for each batch: they fall out of answering, while a forward of SmolLM2 over a text
# takes longer on a CPU than three own steps of the draft with their gradients. A million answer tokens take about 2.5 GB.
PROMPT_SHARE = 1.2  # prompt tokens per answer token, about, for the disk that shards will need
GIB = 2**30


@dataclass(frozen=True)
class Prompt:
    """One turn as the target is asked it."""

    kind: str
    ids: list[int]
    chat: int  # which of the shard's conversations it is a turn of


class Answering:
    """A target, what it is asked, and the folder of its answers."""

    def __init__(self, pair: Pair, recipe: Recipe, texts: Texts, overlaps: Overlaps, folder: Path):
        self.pair, self.recipe, self.texts, self.overlaps, self.folder = pair, recipe, texts, overlaps, folder
        self.teacher = Teacher(pair, recipe.answer_tokens)
        self.most = min(recipe.text_tokens, pair.context) - recipe.answer_tokens  # tokens of a prompt

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def run(self, deadline: float = math.inf) -> bool:
        """Make every shard that is missing, until recipe.tokens are there; returns whether they are.

        Stops between two shards once `deadline` by time.monotonic is over. Raises UserError for a damaged shard, a disk
        that is too small, and prompts of which none leaves room for an answer.
        """
        names = [HELD_OUT]
        answered = 0
        with tqdm(total=self.recipe.tokens, unit="token", unit_scale=True, desc="answers", disable=None) as bar:
            while answered < self.recipe.tokens or len(names) == 1:
                path, held_out = self.path(names[-1]), names[-1] == HELD_OUT
                if not path.exists():
                    if time.monotonic() > deadline:
                        return False
                    self.check_disk(self.recipe.tokens - answered)
                    self.make_shard(names[-1], bar.update if not held_out else lambda new: None)
                if not held_out:
                    answered += Shard(path).answer_tokens
                    bar.update(answered - bar.n)
                names.append(f"train-{len(names):05d}")
        return True

    def read(self) -> tuple[Answers, Answers]:
        """Training and held-out answers: of the training's shards the first that reach recipe.tokens."""
        paths, answered = [], 0
        while answered < self.recipe.tokens:
            paths.append(self.path(f"train-{len(paths) + 1:05d}"))
            answered += Shard(paths[-1]).answer_tokens
        return Answers(paths), Answers([self.path(HELD_OUT)])

    def make_shard(self, name: str, tell) -> None:
        recipe, started = self.recipe, time.monotonic()
        held_out = name == HELD_OUT
        rng = random.Random(f"{recipe.seed}/{name}")
        kinds = mix_kinds(recipe.shares, recipe.held_out if held_out else recipe.shard_prompts, rng)
        chats = Writer(self.texts, held_out, recipe.document).write(kinds, f"{recipe.seed}/{name}")
        asked = [chat for chat in chats if not self.overlaps.found(chat.turns)]
        first, long = self.fit([self.ask(at, asked[at], []) for at in range(len(asked))])
        answers = self.teacher.answer([prompt.ids for prompt in first], tell)
        second = []
        for prompt, answered in zip(first, answers, strict=True):
            chat = asked[prompt.chat]
            if len(chat.turns) > 1:
                said = answer_text(self.pair.tokenizer, answered.ids[answered.prompt :].tolist())
                second.append(self.ask(prompt.chat, chat, [said]))
        second, more = self.fit(second)
        answers += self.teacher.answer([prompt.ids for prompt in second], tell)
        texts = [
            (prompt.kind, answered) for prompt, answered in zip(first + second, answers, strict=True) if is_usable(answered)
        ]
        if not texts:
            raise UserError(
                f"No prompt leaves room for {recipe.answer_tokens} answer tokens within {self.most + recipe.answer_tokens}: "
                "give a higher --text-tokens, or a target with a longer context."
            )
        making = Making(len(chats), len(chats) - len(asked), long + more, round(time.monotonic() - started, 1))
        write_shard(self.path(name), [answered for _, answered in texts], [kind for kind, _ in texts], making)
        tqdm.write(f"{name}: {describe(making)}", file=sys.stderr)

    def ask(self, at: int, chat, said: list[str]) -> Prompt:
        turns = chat.turns[: len(said) + 1]
        return Prompt(chat.kind, build_prompt(self.pair.chat_template, self.pair.tokenizer, turns, said), at)

    def fit(self, prompts: list[Prompt]) -> tuple[list[Prompt], int]:
        """Those that leave room for an answer, and how many do not."""
        kept = [prompt for prompt in prompts if len(prompt.ids) <= self.most]
        return kept, len(prompts) - len(kept)

    def check_disk(self, tokens: int) -> None:
        """Raises UserError where the shards that are still missing would fill the disk."""
        needed = tokens * (1 + PROMPT_SHARE) * (2 * self.pair.target.config.hidden_size + 4)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"Answers of {tokens:,} more tokens take about {needed / GIB:.1f} GiB, but {self.folder} has "
                f"{free / GIB:.1f} GiB free: choose another folder with --out FOLDER, or fewer --tokens."
            )


def is_usable(answered: Answered) -> bool:
    """Whether an own step has something to learn from it: it is fed one token and predicts the next."""
    return len(answered.ids) >= 3


def describe(making: Making) -> str:
    return (
        f"{making.chats} prompts, {making.overlapping} dropped for what a benchmark asks, {making.long} for their "
        f"length; {making.seconds:.0f} s"
    )
