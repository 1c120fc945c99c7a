"""Side by side with transformers on a GPU: python scripts/gpu/job4_vs_transformers.py [KEY=VALUE ...]

Runs benchmarks/vs_transformers.py (same pair, prompts and gamma; our loop in each runtime against `generate`, alone and
with an assistant model) and keeps its table and its last line.
"""

import sys
from pathlib import Path

from jobs import Finished, Job, make_parser, run_job

from gammatune.runs.cells import write_json

SIZES = ("questions", "tokens", "repeats")
DRY = ["--questions", "2", "--tokens", "8", "--repeats", "2", "--dtypes", "fp32", "model_pair=tiny-random", "tasks=demo"]


def work(job: Job) -> str:
    job.step("vs_transformers", lambda path: keep(compare(job), path))
    return "tokens/s of our loop beside transformers' own, on the same pair and prompts"


def compare(job: Job) -> Finished:
    """Exit code 1 says that an answer was wrong, which is a result too."""
    sizes = [word for name in SIZES for word in (f"--{name}", getattr(job.options, name))]
    words = DRY if job.options.dry_run else [*sizes, "tasks=specbench"]
    place = [f"runtime.device={job.device}", *job.options.settings]
    return job.run("vs_transformers", ["benchmarks/vs_transformers.py", *words, *place], allowed=(0, 1))


def keep(ended: Finished, path: Path) -> None:
    path.mkdir(parents=True)
    write_json(path / "result.json", {"exit_code": ended.code, **ended.last_json})
    (path / "table.md").write_text("\n".join(ended.out.strip().splitlines()[:-1]) + "\n")


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, "vs-transformers")
    for name, default in zip(SIZES, (12, 128, 3), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"as for the benchmark ({default})")
    return run_job(parser, work, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
