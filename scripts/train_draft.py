"""Train the embedded draft: python scripts/train_draft.py --specbench question.jsonl [--device cuda] [--steps STEP ...]

texts     fetch the text packages and cut them into documents, sentences and names (needs apt-get, no root)
teacher   let the target answer prompts made from them, and store its most likely tokens
train     distil the draft; the last lines of its folder are config.json and model.safetensors
evaluate  mean tokens per round and reliability on held-out prompts and, with --specbench, on Spec-Bench
ranking   order the tokens by how often the training samples have them, for a draft with a reduced vocabulary
ship      replace the draft in --output by the trained one (only when asked for)
measure   evaluate the draft in --output, which needs no step before it (only when asked for)

What a step has made in the work folder is kept, so a run that was cut continues with the same command, and a work folder
can move to another machine. About two hours on two cores; minutes on a GPU. A trained draft is tried with
`python run.py model_pair.draft.path=WORK/RUN`.
"""

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from draft_training import measure, teacher, texts
from draft_training.student import export, read_fields, write_json
from draft_training.train import Recipe, Training
from rank_tokens import count_tokens, describe_counts, rank_tokens, save_ranking
from transformers import LlamaForCausalLM

from gammatune.compose import compose_config
from gammatune.config import Checkpoint
from gammatune.errors import UserError, exit_code_of
from gammatune.models.devices import choose_device
from gammatune.models.load import load_borrowing_draft, load_model, load_tokenizer, read_config
from gammatune.models.sources import DRAFT_FOLDER, Files, locate

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("texts", "teacher", "train", "evaluate", "ranking")
STEPS = (*TRAINING, "ship", "measure")
RECIPE = ("tokens", "step_tokens", "rate", "intermediate")
DRAFT_FILES = ("config.json", "model.safetensors", "evaluation.json", "token_ranking.npy")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="folder of the target checkpoint; default: the embedded one")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "draft", help="work folder")
    parser.add_argument("--output", type=Path, default=DRAFT_FOLDER, help="folder of the shipped draft")
    parser.add_argument("--specbench", type=Path, help="question.jsonl: overlap check and evaluation, never training")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(TRAINING))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of prompts of every kind (2: 300,000 answer tokens)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts of prompts")
    parser.add_argument("--answer-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--cached-tokens", type=int, default=72_000, help="that the target answers at a time")
    parser.add_argument("--run", default="run", help="name of the training inside the work folder")
    parser.add_argument("--sources", type=int, nargs="+", default=Recipe().sources, help="target layers to start from")
    for name in RECIPE:
        default = getattr(Recipe(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"({default})")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    return parser


def find_target(folder: Path | None) -> Files:
    """The target in a folder, else the one that the shipped draft belongs to, fetched where it is not here.

    Raises UserError.
    """
    if folder is not None:
        return locate("target", Checkpoint(path=str(folder)), source="hub")
    pair = compose_config(["model_pair=smollm2-draft-135m"]).model_pair
    return locate("target", pair.target, pair.source)


def load_draft(folder: Path, target: LlamaForCausalLM) -> LlamaForCausalLM:
    """A trained draft over the target's embedding and LM head. Raises UserError where its files do not suit the target."""
    files = locate("draft", Checkpoint(path=str(folder), borrows_tables=True), source="wheels")
    return load_borrowing_draft(files, read_config(files), target).eval()


class Steps:
    """The steps over one work folder; the target is loaded when it is first needed."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.shards, self.run = options, options.work / "shards", options.work / options.run
        self.target, self.device = find_target(options.target), choose_device(options.device)
        self.config = read_config(self.target)

    def load_target(self, dtype: torch.dtype = torch.float32):
        return load_model(self.target, self.device, dtype).eval()

    def make_teacher(self, dtype: torch.dtype) -> teacher.Teacher:
        tokenizer = load_tokenizer(self.target)
        return teacher.Teacher(self.load_target(dtype), tokenizer, self.options.answer_tokens, self.options.cached_tokens)

    def load_samples(self, split: str):
        """Raises UserError where there are none."""
        samples = teacher.load_samples(self.shards, f"{split}-*")
        if samples is None:
            raise UserError(f"{self.shards} holds no samples: run the step teacher first.")
        return samples

    def texts(self) -> None:
        texts.make_texts(self.options.work)

    def teacher(self) -> None:
        path, shards = self.options.work / texts.FILE, teacher.plan_shards(self.options.rounds, self.options.scale)
        if all((self.shards / shard.name).exists() for shard in shards):
            return
        if not path.exists():
            raise UserError(f"{path} is not there: run the step texts first.")
        found = texts.load_texts(self.options.work, "run the step texts in another --work")
        self.shards.mkdir(parents=True, exist_ok=True)
        teacher.make_shards(self.make_teacher(torch.bfloat16), shards, self.shards, found, self.options.specbench)

    def train(self) -> None:
        if (self.run / "model.safetensors").exists():
            return
        self.run.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(self.options.sources, **{name: getattr(self.options, name) for name in RECIPE})
        draft = Training(self.load_target(), self.load_samples("train"), self.run, recipe).run(self.options.save_every)
        temperature = measure.fit_temperature(draft, self.load_samples("dev"))
        write_json(self.run / "recipe.json", asdict(recipe) | {"temperature": temperature})
        export(draft, self.run, temperature)

    def evaluate(self) -> None:
        recipe = read_fields(self.run / "recipe.json", "run the step train first", "temperature")
        draft = load_draft(self.run, self.load_target())
        found = {"temperature": recipe["temperature"], "dev": self.describe(draft, self.load_samples("dev"), "held out")}
        if self.options.specbench:
            found["specbench"] = self.describe(draft, self.answer_specbench(), "Spec-Bench")
        write_json(self.run / "evaluation.json", found)

    def measure(self) -> None:
        if not self.options.specbench:
            raise UserError("The step measure needs --specbench FILE, a copy of Spec-Bench's question.jsonl.")
        self.describe(load_draft(self.options.output, self.load_target()), self.answer_specbench(), "Spec-Bench")

    def describe(self, draft, samples, title: str) -> dict:
        summary = measure.summarise(measure.compare_tokens(draft, samples))
        print(f"{title}, gamma {measure.GAMMA}:\n\n{measure.describe(summary)}\n", flush=True)
        return summary

    def answer_specbench(self):
        """The target's own fp32 greedy answers to all turns, made once."""
        path = self.options.work / "specbench"
        if not path.exists():
            self.options.work.mkdir(parents=True, exist_ok=True)
            questions = teacher.read_questions(self.options.specbench)
            kinds, chats = [question.task for question in questions], [question.turns[:2] for question in questions]
            teacher.store_samples(self.make_teacher(torch.float32).make_samples(chats, kinds), path)
        return teacher.load_samples(self.options.work, "specbench")

    def ranking(self) -> None:
        """From prompts and answers, never from the held-out ones."""
        vocab_size = self.config.vocab_size
        train, dev = (
            count_tokens((row["ids"] for row in self.load_samples(split)), vocab_size) for split in ("train", "dev")
        )
        ranking = rank_tokens(train)
        self.run.mkdir(parents=True, exist_ok=True)
        save_ranking(self.run / "token_ranking.npy", ranking)
        print(f"{describe_counts(ranking, train)} Held out, not counted: {describe_counts(ranking, dev)}")

    def ship(self) -> None:
        self.options.output.mkdir(parents=True, exist_ok=True)
        for name in DRAFT_FILES:
            if not (self.run / name).exists():
                raise UserError(f"{self.run} holds no {name}: run the steps {', '.join(TRAINING)} first.")
        for name in DRAFT_FILES:
            shutil.copyfile(self.run / name, self.options.output / f".{name}.partial")
            (self.options.output / f".{name}.partial").replace(self.options.output / name)


def main(words: list[str]) -> int:
    options = build_parser().parse_args(words)
    try:
        steps = Steps(options)
        for name in STEPS:
            if name in options.steps:
                print(f"== {name}", flush=True)
                getattr(steps, name)()
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, folder_choice="--work FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
