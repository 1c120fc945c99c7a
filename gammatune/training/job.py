"""A whole training in one folder: answers, the draft, its card. The same call goes on where a killed process stopped."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gammatune.errors import UserError
from gammatune.files import hold_folder, read_json, write_json, write_text
from gammatune.models.draft_vocabulary import choose_ids
from gammatune.models.feature_draft import FeatureDraft
from gammatune.models.pair import Pair
from gammatune.runs.earlier import flatten
from gammatune.runs.provenance import describe_environment
from gammatune.tasks.questions import QuestionSet
from gammatune.training.answering import Answering
from gammatune.training.card import Made, write_card
from gammatune.training.overlaps import Overlaps
from gammatune.training.recipe import Recipe
from gammatune.training.shards import Answers
from gammatune.training.texts import Texts
from gammatune.training.train import Training, describe

ABOUT = "about.json"  # in the training's folder and in that of the answers: what they belong to
CHOICE = "--out FOLDER"
DRAFT, CARD = "draft", "README.md"


@dataclass(frozen=True)
class Source:
    """What prompts are made from, beside the recipe."""

    texts: Texts
    texts_sha256: str | None  # of their file; None for our own templates alone
    questions: QuestionSet | None  # none of which may be asked


@dataclass(frozen=True)
class Job:
    """One training."""

    pair: Pair  # whose target teaches
    recipe: Recipe
    source: Source
    folder: Path
    answers: Path  # folder of the target's answers, this training's own or another's

    def run(self, deadline: float = math.inf) -> Path | None:
        """The folder of the finished draft; None where `deadline` by time.monotonic came first.

        Raises UserError for a folder of another training, a target without a form here, a full disk, a damaged file.
        """
        with hold_folder(self.folder, CHOICE):
            claim(self.folder, self.target | {"recipe": asdict(self.recipe)}, "training")
            with self.hold_answers():
                claim(self.answers, self.target | self.questions | {"recipe": self.recipe.teaching}, "answers")
                answering = Answering(self.pair, self.recipe, self.source.texts, Overlaps(self.asked), self.answers)
                if not answering.run(deadline):
                    return self.stop("while the target answers")
                train, held_out = answering.read()
                training = Training(self.start_draft(train), train, held_out, self.recipe, self.folder)
                if not training.run(deadline):
                    return self.stop(f"at {training.done:.0%} of the training")
            return self.finish(training, train, held_out)

    @contextmanager
    def hold_answers(self) -> Iterator[None]:
        if self.answers.parent == self.folder:
            self.answers.mkdir(exist_ok=True)  # the training's own folder is held
            yield
        else:
            with hold_folder(self.answers, "--answers FOLDER"):
                yield

    @property
    def target(self) -> dict:
        """Which target, in its dtype."""
        return {"target": self.pair.identity, "dtype": str(self.pair.dtype), "chat_template": self.pair.chat_template}

    @property
    def questions(self) -> dict:
        found = self.source.questions
        return {"questions": found.checksum if found else None, "texts": self.source.texts_sha256}

    @property
    def asked(self):
        return self.source.questions.questions if self.source.questions else ()

    def start_draft(self, answers: Answers) -> FeatureDraft:
        """Untrained, over the most frequent tokens of the answers."""
        ids = None
        if self.recipe.vocabulary < self.pair.vocab_size:
            counts = answers.count_ids(self.pair.vocab_size)
            # By falling count; of equal ones the lower id first, since merges are numbered by their own frequency
            ranking = np.argsort(-counts, kind="stable")
            ids = torch.from_numpy(choose_ids(ranking, self.recipe.vocabulary, self.pair.eos_ids)).to(self.pair.device)
        return FeatureDraft.from_target(self.pair.target, ids)

    def finish(self, training: Training, train: Answers, held_out: Answers) -> Path:
        folder = self.folder / DRAFT
        training.draft.save(folder, self.pair.tokenizer)
        environment = describe_environment(self.pair.device, self.pair.identity)
        made = Made(
            pair=self.pair.name,
            recipe=self.recipe,
            log=training.state.log,
            train=train,
            held_out=held_out,
            seconds=training.state.seconds,
            environment=environment,
            questions=self.questions["questions"],
        )
        write_json(folder / "provenance.json", environment | {"recipe": asdict(self.recipe), "evaluation": made.last})
        write_text(folder / CARD, write_card(made))
        print(describe(made.last), file=sys.stderr)
        return folder

    def stop(self, where: str) -> None:
        print(f"The time is over {where}: the same command goes on from there.", file=sys.stderr)


def claim(folder: Path, about: dict, what: str) -> None:
    """Write down what a folder belongs to. Raises UserError where it belongs to something else."""
    path = folder / ABOUT
    if not path.exists():
        write_json(path, about)
        return
    found = read_json(path, f"delete {folder} or choose another folder with {CHOICE}")
    found.pop("schema", None)
    mine, theirs = flatten(json.loads(json.dumps(about, default=str))), flatten(found)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise UserError(
                f"{folder} holds the {what} of another training, whose {key} is {theirs.get(key)} and not {mine.get(key)}: "
                f"give what it was begun with, or choose another folder with {CHOICE}."
            )
