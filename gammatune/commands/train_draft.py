"""The command `train-draft`: train a feature draft for a pair's target, from prompts to a model card."""

import argparse
import math
import time
from dataclasses import fields
from pathlib import Path

from gammatune.commands.options import add_settings, ratio, whole
from gammatune.compose import compose_config
from gammatune.errors import UserError, stopping_quietly
from gammatune.files import content_hash
from gammatune.process import loading
from gammatune.training.recipe import Recipe, recipe_for

OUT = Path("results/training")
NO_TEXTS = "none"
#: options that are numbers of the recipe, and what each is
NUMBERS = {
    "tokens": "that the target answers for training",
    "answer_tokens": "longest answer, in tokens",
    "text_tokens": "longest prompt with its answer",
    "vocabulary": "how many tokens the draft can propose",
    "steps_in_loss": "own steps of the draft that are trained",
    "epochs": "passes over all answers",
    "step_places": "answer tokens of an optimiser's step",
    "rate": "highest learning rate",
    "feature_weight": "of the distance between features in the loss",
}


def add_command(commands) -> None:
    parser = commands.add_parser(
        "train-draft", help="train a feature draft for the target of a pair; goes on where it stopped"
    )
    add_settings(parser, "model_pair=smollm2-draft-135m runtime.device=cuda")
    kinds = {each.name: each.type for each in fields(Recipe)}
    for name, meaning in NUMBERS.items():
        read = whole(1, 2**31 - 1) if kinds[name] is int else ratio
        parser.add_argument(f"--{name.replace('_', '-')}", type=read, metavar="N", help=f"{meaning} (default: the pair's)")
    parser.add_argument("--minutes", type=ratio, metavar="M", help="after which it stops, to go on with the same command")
    parser.add_argument("--out", type=Path, help=f"folder of this training (default: {OUT}/PAIR-HASH)")
    parser.add_argument("--answers", type=Path, metavar="FOLDER", help="answers of another training of the same target")
    parser.add_argument(
        "--specbench",
        type=Path,
        metavar="FILE",
        help="questions never to be asked (default: Spec-Bench's, where it is here)",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help=f"documents, sentences and names for prompts, as JSON; {NO_TEXTS}: our own templates alone (default: made from "
        "Debian packages, which apt-get fetches)",
    )
    parser.set_defaults(command=train_draft)


def train_draft(options: argparse.Namespace) -> int:
    started = time.monotonic()
    config = compose_config(options.settings)
    name = config.model_pair.name
    recipe = recipe_for(name, seed=config.seed, **{number: getattr(options, number) for number in NUMBERS})
    for folder in (options.out, options.answers):
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is no folder: name one.")
    # Heavy imports only once the config is known to be good
    with loading():
        import torch

        from gammatune.models.pair import load_pair
        from gammatune.training.job import Job, Source
        from gammatune.training.overlaps import find_questions
        from gammatune.training.texts import find_texts

    texts, sha256 = find_texts(options.texts)
    source = Source(texts, sha256, find_questions(options.specbench))
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype, with_draft=False)
    folder = options.out or OUT / f"{name}-{content_hash({'recipe': recipe, 'target': pair.identity, 'texts': sha256})}"
    answers = (options.answers or folder) / "answers"
    deadline = started + 60 * options.minutes if options.minutes else math.inf
    with stopping_quietly():
        draft = Job(pair, recipe, source, folder, answers).run(deadline)
    print(draft or folder)
    return 0
