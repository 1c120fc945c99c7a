"""Live runs of run.py, one per runtime, and the part of each that is worth keeping."""

import argparse
import shutil
from pathlib import Path

from jobs import Job

from gammatune.config import RUNTIMES

LARGEST = 4 * 2**20  # bytes of a file that is kept
LEFT_OUT = ("lock", "*.html", "figures", "answers")


def add_options(parser: argparse.ArgumentParser, limit: int) -> None:
    parser.add_argument("--limit", type=int, default=limit, help=f"questions per task, a stratified subset ({limit})")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer (128)")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="both, one after the other")


def run_live(job: Job, settings: list[str]) -> str:
    """out/<runtime> for each runtime; run.py itself continues a run that was cut. Returns the names of what is there."""
    for runtime in job.options.runtimes:
        job.step(runtime, lambda path, runtime=runtime: keep_run(live_run(job, runtime, settings), path))
    return " and ".join(runtime for runtime in RUNTIMES if (job.out / runtime).exists())


def live_run(job: Job, runtime: str, settings: list[str]) -> Path:
    """The finished run's folder."""
    place = [f"runtime={runtime}", f"runtime.device={job.device}", f"results={job.options.work / 'runs'}"]
    ended = job.run(runtime, ["run.py", *settings, *place, *job.options.settings])
    return Path(ended.last_json["run_dir"])


def keep_run(run: Path, path: Path) -> None:
    """Copies everything that tables are made from, but for files of LARGEST bytes or more; figures can be redrawn."""

    def leave_out(folder: str, names: list[str]) -> set[str]:
        large = {
            name for name in names if (Path(folder) / name).is_file() and (Path(folder) / name).stat().st_size >= LARGEST
        }
        return large | shutil.ignore_patterns(*LEFT_OUT)(folder, names)

    shutil.copytree(run, path, ignore=leave_out)


def choose_pair(job: Job, limit: int | None) -> list[str]:
    """Pair, questions and answer lengths: the embedded pair on Spec-Bench, or for a dry run the tiny one on the demo set."""
    if job.options.dry_run:
        return ["model_pair=tiny-random", "tasks=demo", "tasks.include=[qa]", "tasks.limit=1", "decode.max_new_tokens=8"]
    part = [] if limit is None else [f"tasks.limit={limit}", "tasks.seed=0"]
    return ["tasks=specbench", *part, f"decode.max_new_tokens={job.options.tokens}"]
