"""python scripts/torture_kills.py --count 200: kill small runs and recordings at random moments, and see what is left.

Each trial is killed one to three times, then run to its end, and compared with undisturbed work. Trials are forked from a
process that has everything imported already. Exit code 1 where any of them differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors gain nothing from threads, and a fork should have none
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runs")]

from killing import ENDED_WELL, differences, fork, in_child, samplers, stored  # noqa: E402

from gammatune.compose import compose_config  # noqa: E402
from gammatune.config import RunConfig  # noqa: E402
from gammatune.runs.runner import Runner  # noqa: E402
from gammatune.studies.record import Recorder  # noqa: E402

QUESTIONS = 6
TEXTS = ("Why does ice float?", "A poem about rain.", "2 + 2 =")
PLAIN = ["model_pair=tiny-random", "runtime=eager", "tasks=specbench", "tasks.checksum=null", "decode.max_new_tokens=24"]
PLAIN += ["policy=[fixed,gammatune_plus,hf_heuristic]", "policy.hf_heuristic.carry=never"]


@dataclass
class Trial:
    """One run or recording that was killed, and what came of it."""

    kind: str  # "run" or "record"
    planned: list[float]  # seconds after which it was to be killed
    kills: int  # of these, how many came before its end
    finished: bool  # whether the same work ended well afterwards
    differed: str  # files that differ from those of undisturbed work, are missing, or were left over; "" for none


def kill_trials(folder: Path, count: int, seconds: float, seed: int) -> list[Trial]:
    """Up to `count` trials within about `seconds`, runs and recordings in turn. folder: for their files; kept where bad."""
    folder.mkdir(parents=True, exist_ok=True)
    config, rng, started = make_config(folder), random.Random(seed), time.perf_counter()
    works = {"run": partial(run, config), "record": partial(record, config)}
    undisturbed = {kind: measure(work, folder / f"undisturbed-{kind}") for kind, work in works.items()}
    trials = []
    while len(trials) < count and time.perf_counter() - started < seconds:
        kind = ("run", "record")[len(trials) % 2]
        wanted, duration = undisturbed[kind]
        moments = [rng.uniform(0, duration) for _ in range(rng.randint(1, 3))]
        trials.append(try_once(kind, partial(works[kind], folder / f"{len(trials)}"), moments, wanted))
        if not trials[-1].differed:
            shutil.rmtree(folder / f"{len(trials) - 1}")
    return trials


def make_config(folder: Path) -> RunConfig:
    """Six questions, every third of two turns."""
    file = folder / "questions.jsonl"
    asked = [
        {"question_id": number, "category": "qa", "turns": [TEXTS[number % 3]] * (2 if number % 3 == 0 else 1)}
        for number in range(QUESTIONS)
    ]
    file.write_text("".join(json.dumps(question) + "\n" for question in asked))
    return compose_config([*PLAIN, f"tasks.path='{file}'"])


def run(config: RunConfig, results: Path) -> None:
    config = deepcopy(config)
    config.results = str(results)
    Runner(config).run()


def record(config: RunConfig, results: Path) -> None:
    Recorder(deepcopy(config), results, depth=24).run()


def measure(work: Callable[[Path], None], results: Path) -> tuple[dict, float]:
    """What undisturbed work leaves, and the seconds it takes."""
    started = time.perf_counter()
    if in_child(partial(work, results)) != ENDED_WELL:
        raise SystemExit(f"The undisturbed work failed: see {results}.")
    return stored(results), time.perf_counter() - started


def try_once(kind: str, work: Callable[[], None], moments: list[float], wanted: dict) -> Trial:
    kills = sum(kill_after(work, moment) for moment in moments)
    finished = in_child(work) == ENDED_WELL
    results = work.args[-1]
    differed = ", ".join(differences(stored(results), wanted)) if finished else "it did not end well"
    return Trial(kind, [round(moment, 3) for moment in moments], kills, finished, differed)


def kill_after(work: Callable[[], None], seconds: float) -> bool:
    """Whether the kill came before the end."""
    child = fork(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def summarise(trials: list[Trial], kind: str) -> str:
    done = [trial for trial in trials if trial.kind == kind]
    kills, bad = sum(trial.kills for trial in done), [trial for trial in done if trial.differed]
    return f"{kind}: {len(done)} trials, {kills} kills before the end, {len(bad)} differ from undisturbed work."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="trials (default: 200)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="no trial begins after that (default: 1800)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, help="folder for the files of trials that differ (default: a new one)")
    options = parser.parse_args()
    folder = (options.out or Path(tempfile.mkdtemp(prefix="gammatune-kills-"))).resolve()
    trials = kill_trials(folder, options.count, options.seconds, options.seed)
    for kind in ("run", "record"):
        print(summarise(trials, kind))
    bad = [trial for trial in trials if trial.differed]
    print(*bad, sep="\n")
    time.sleep(3)  # longer than a sampler takes to miss its parent
    left = samplers(folder)
    print(f"{len(left)} samplers are left; files in {folder}.")
    return 1 if bad or left else 0


if __name__ == "__main__":
    sys.exit(main())
