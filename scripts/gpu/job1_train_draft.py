"""The embedded draft, trained on a GPU: python scripts/gpu/job1_train_draft.py [--specbench FILE] [--minutes M] [--ship]

Drives scripts/train_draft.py: texts, at least --tokens answer tokens of the teacher, training, measurement on Spec-Bench.
Then compares mean accepted tokens at gamma 5 with the shipped draft's evaluation and says whether to ship; the weights
are replaced only with --ship, and only by better ones. Texts come from Debian packages (apt-get): for a machine without a
network, run `python scripts/train_draft.py --steps corpus --work FOLDER/draft` elsewhere and bring FOLDER as --work.
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd
from gammatune.runs.cells import write_json
from jobs import ROOT, Job, make_parser, run_job

from gammatune.compose import compose_config
from gammatune.tasks.questions import DEMO_PATH, find_question_file

SHIPPED = ROOT / "gammatune" / "models" / "embedded_draft" / "evaluation.json"
GOAL, LEAST = 2.0, 1.5  # mean accepted tokens: over all questions, of each task
FIRST_ROUNDS = 4


def work(job: Job) -> str:
    job.step("teacher.json", lambda path: write_json(path, make_answers(job)))
    job.step("evaluation.json", lambda path: train_and_measure(job, path))
    job.step("comparison", lambda path: compare(job, path))
    verdict = json.loads((job.out / "comparison" / "verdict.json").read_text())
    print(verdict["sentence"], flush=True)
    if verdict["better"] and job.options.ship:
        job.step("shipped.json", lambda path: ship(job, path))
    return f"the embedded draft trained on a GPU, beside the one shipped then: {verdict['sentence']}"


def train_draft(job: Job, product: str, steps: list[str], rounds: int) -> None:
    """One call of scripts/train_draft.py; in a dry run only its command line is read."""
    options = job.options
    words = ["--steps", *steps, "--work", options.work / "draft", "--device", job.device, "--rounds", rounds]
    words += ["--minutes", options.train_minutes, "--run", "gpu", "--specbench", find_questions(job)]
    words = ["scripts/train_draft.py", *map(str, words), *options.settings]
    if options.dry_run:
        job.note(product, [sys.executable, *words])
        read_words(words)
    else:
        job.run(product, words)


def read_words(words: list[str]) -> None:
    """Exits with argparse's complaint where scripts/train_draft.py would not take them."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import train_draft as script

    own, sys.argv = sys.argv, words
    try:
        script.parse()
    finally:
        sys.argv = own


def find_questions(job: Job) -> Path:
    if job.options.dry_run:
        return DEMO_PATH
    settings = [f"tasks.path={job.options.specbench.resolve()}"] if job.options.specbench else []
    return find_question_file(compose_config(["tasks=specbench", *settings]).tasks)[0].resolve()


def make_answers(job: Job) -> dict:
    """Rounds of teacher shards until there are enough tokens; shards that exist are kept."""
    train_draft(job, "corpus", ["corpus"], FIRST_ROUNDS)
    while True:
        rounds, tokens = count_answers(job.options.work / "draft" / "shards")
        if tokens >= job.options.tokens:
            return {"rounds": rounds, "tokens": tokens}
        train_draft(job, "teacher", ["teacher"], plan_rounds(rounds, tokens, job.options.tokens))
        if job.options.dry_run:
            return {"rounds": 0, "tokens": 0}


def count_answers(shards: Path) -> tuple[int, int]:
    """Complete rounds (the last kind of each) and the teacher's own tokens, without the held-out shards."""
    counts = [json.loads(path.read_text())["new_tokens"] for path in sorted(shards.glob("train-*.json"))]
    return len(list(shards.glob("train-*-rag.json"))), sum(counts)


def plan_rounds(rounds: int, tokens: int, goal: int) -> int:
    """How many rounds will reach the goal if they go on as so far; at least one more than there are."""
    return max(rounds + 1, math.ceil(goal / tokens * rounds)) if rounds else FIRST_ROUNDS


def train_and_measure(job: Job, path: Path) -> None:
    rounds, _ = count_answers(job.options.work / "draft" / "shards")
    train_draft(job, "train", ["train", "evaluate"], rounds)
    made = SHIPPED if job.options.dry_run else job.options.work / "draft" / "gpu" / "evaluation.json"
    path.write_text(made.read_text())


def compare(job: Job, path: Path) -> None:
    shipped, new = (json.loads(file.read_text())["specbench"] for file in (SHIPPED, job.out / "evaluation.json"))
    table = tabulate(shipped, new)
    path.mkdir(parents=True)
    table.to_csv(path / "mean_accepted_tokens.csv")
    (path / "mean_accepted_tokens.md").write_text(table.round(3).to_markdown() + "\n")
    pd.DataFrame(new["reliability"]).to_csv(path / "reliability.csv", index=False)
    write_json(path / "verdict.json", judge(table))


def tabulate(shipped: dict, new: dict) -> pd.DataFrame:
    """Mean accepted tokens at gamma 5 by task. shipped, new: summaries as draft_training.measure makes them."""
    sides = {"shipped": shipped["tasks"], "new": new["tasks"]}
    table = pd.DataFrame({side: pd.DataFrame(tasks).loc["mean_emitted"] for side, tasks in sides.items()}).rename_axis(
        "task"
    )
    return table.assign(ratio=table["new"] / table["shipped"])


def judge(table: pd.DataFrame) -> dict:
    shipped, new = table.loc["overall", ["shipped", "new"]]
    weakest = table["new"].drop("overall").idxmin()
    met = bool(new >= GOAL and table.loc[weakest, "new"] >= LEAST)
    better = bool(new > shipped)
    sentence = (
        f"{'Ship' if better else 'Do not ship'}: {new:.3f} mean accepted tokens against {shipped:.3f}; the weakest task is "
        f"{weakest} with {table.loc[weakest, 'new']:.3f}; the goal ({GOAL} overall, {LEAST} each) is "
        f"{'met' if met else 'not met'}."
    )
    return {"better": better, "goal_met": met, "sentence": sentence}


def ship(job: Job, path: Path) -> None:
    rounds, _ = count_answers(job.options.work / "draft" / "shards")
    train_draft(job, "ship", ["ship"], rounds)
    write_json(path, {"replaced": str(SHIPPED.parent.relative_to(ROOT))})


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, "embedded-draft-training")
    parser.add_argument("--specbench", type=Path, help="question.jsonl; default: $SPECBENCH_PATH, the cache, a download")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="least answer tokens of the teacher (10 million)")
    parser.add_argument("--train-minutes", type=float, default=60.0, help="training time (60)")
    parser.add_argument("--ship", action="store_true", help="replace the shipped weights by better ones")
    return run_job(parser, work, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
