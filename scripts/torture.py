"""Hand every command what it cannot take, kill runs at any moment, and judge what comes of it: `make torture`.

Every case of tests/bad_inputs, random ones beside, each in a child with a folder of its own, two at a time; then runs that
are killed and started again until they end. A good answer is one true sentence and its exit code, within ten seconds; a
good run has lost nothing. Prints a table and every complaint with the words that repeat it; exit code 1 where there is one.
"""

import argparse
import importlib
import os
import pkgutil
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny tensors gain nothing from threads, and a fork loses them
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import bad_inputs  # noqa: E402
from bad_inputs.case import Case, Outcome, complaint  # noqa: E402
from bad_inputs.child import LIMIT_S, Child  # noqa: E402

AT_ONCE = 2


@dataclass
class Tally:
    """What was tried and what was wrong, by kind."""

    tried: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def add(self, kind: str, complaint: str, repeat: str) -> None:
        self.tried[kind] += 1
        if complaint:
            self.wrong[kind] += 1
            self.complaints.append(f"{kind}: {complaint}\n    {repeat}")
            print(self.complaints[-1], flush=True)

    def table(self) -> str:
        rows = [("kind", "tried", "wrong"), *((kind, self.tried[kind], self.wrong[kind]) for kind in self.tried)]
        rows.append(("all", self.tried.total(), self.wrong.total()))
        return "\n".join(f"{kind:24} {tried:>6} {wrong:>6}" for kind, tried, wrong in rows)


def list_cases(seed: int, count: int) -> Iterator[tuple[str, Case]]:
    """Every case that is written down, then random ones of every module that makes some, `count` in all at least."""
    written = [(kind, case) for kind, cases in bad_inputs.ALL.items() for case in cases]
    yield from written
    modules = [importlib.import_module(f"bad_inputs.{found.name}") for found in pkgutil.iter_modules(bad_inputs.__path__)]
    makers = [module for module in modules if hasattr(module, "fuzz")]
    share = max(count - len(written), len(makers)) // len(makers)
    made = [module.fuzz(Random(f"{seed}/{module.__name__}"), share) for module in makers]
    for cases in zip(*made, strict=True):  # in turn, so that a run that is short of time has seen all kinds
        for module, case in zip(makers, cases, strict=True):
            yield f"random {module.__name__.rpartition('.')[2]}", case


def try_inputs(folder: Path, seed: int, count: int, until: float, tally: Tally) -> None:
    """Run cases two at a time until there are none or the time is over."""
    cases, running = enumerate(list_cases(seed, count)), {}
    more = True
    while more or running:
        while more and len(running) < AT_ONCE:
            number, (kind, case) = next(cases, (None, (None, None)))
            more = case is not None and time.monotonic() < until
            if more:
                running[start(case, folder / str(number))] = (kind, case)
        for child in [child for child in running if child.poll()]:
            kind, case = running.pop(child)
            tally.add(kind, judge(case, child.outcome), f"{case.name!r}: gammatune {shlex.join(case.words)[:2000]}")
        time.sleep(0.002)


def start(case: Case, folder: Path) -> Child:
    """Files are made on this side of the fork, where what many cases share is made once."""
    folder.mkdir()
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        case.prepare(folder)
    return Child(case.words, folder, limit_s=LIMIT_S)


def judge(case: Case, outcome: Outcome) -> str:
    if outcome.code < 0:
        return f"killed by signal {-outcome.code} after {outcome.seconds:.1f} s: {outcome.err[-200:]}"
    return complaint(case, outcome, LIMIT_S)


def try_kills(folder: Path, seed: int, count: int, seconds: float, tally: Tally) -> None:
    from torture_kills import kill_trials

    for trial in kill_trials(folder, count, seconds, seed):
        tally.add("kill", trial.differed, str(trial))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the random cases (default: 0)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all (default: 10)")
    parser.add_argument("--inputs", type=int, default=1200, help="bad inputs, the written ones among them (default: 1200)")
    parser.add_argument("--kills", type=int, default=200, help="kills (default: 200)")
    options = parser.parse_args()
    import gammatune.cli
    import gammatune.drafters
    import gammatune.runs.measure_prices
    import gammatune.runs.runner
    import gammatune.studies.record  # noqa: F401  here once, not in every child

    tally, begun = Tally(), time.monotonic()
    share = options.inputs / max(1, options.inputs + 3 * options.kills)  # a kill and its sequel take as long as three
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        try_inputs(Path(place), options.seed, options.inputs, begun + share * options.minutes * 60, tally)
        left = begun + options.minutes * 60 - time.monotonic()
        if options.kills:
            try_kills(Path(place) / "kills", options.seed, options.kills, left, tally)
    print(f"\n{tally.table()}\n\n{len(tally.complaints)} complaints, seed {options.seed}")
    print("\n".join(tally.complaints))
    return 1 if tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
