"""What a draft step and a verification cost on this machine: python benchmarks/forward_cost.py [model_pair=...]

Prints T_draft and T_target(k) for k tokens in one forward, medians with quartiles in milliseconds, and their ratio. The
forwards are interleaved, so a machine that slows down slows all of them. The last line is one JSON object.
"""

import json
import random
import sys
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from gammatune.config import read_config, register_schemas
from gammatune.decoding.clock import Clock
from gammatune.models.pairs import load_pair
from gammatune.models.runtime import CachedModel, PairRuntime, eager_runtime

CONTEXTS = (128, 512)
BLOCKS = (1, 2, 3, 4, 6, 9, 13, 17, 25)
REPETITIONS = 15


def measure(runtime: PairRuntime) -> pd.DataFrame:
    """One row per timed forward: context, model, tokens, ms."""
    rows = []
    for context in CONTEXTS:
        filler = runtime.upload([5 + i % 200 for i in range(context + max(BLOCKS))])
        for model in (runtime.target, runtime.draft):
            model.reset()
            model.forward(filler[:context], keep=1)
        jobs = [("target", runtime.target, k) for k in BLOCKS] + [("draft", runtime.draft, 1)]
        for repetition in range(REPETITIONS + 2):
            random.Random(repetition).shuffle(jobs)
            timed = [
                (context, name, k, time_forward(runtime, model, filler[context : context + k])) for name, model, k in jobs
            ]
            rows += timed if repetition >= 2 else []
    return pd.DataFrame(rows, columns=["context", "model", "tokens", "ms"])


def time_forward(runtime: PairRuntime, model: CachedModel, tokens) -> float:
    """Milliseconds of one forward; the cache is put back."""
    clock, length = Clock(runtime.device), model.length
    clock.synchronize()
    start = clock.mark()
    model.forward(tokens, keep=tokens.shape[0])
    end = clock.mark()
    clock.synchronize()
    model.crop(length)
    return clock.between(start, end)


def main(overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "configs"), version_base="1.3"):
        config = read_config(compose("run", overrides))
    costs = measure(eager_runtime(load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)))
    table = costs.groupby(["context", "model", "tokens"])["ms"].describe()[["25%", "50%", "75%"]]
    print(table.round(2).to_markdown())
    medians = table["50%"]
    ratios = {str(context): round(medians[context, "target", 1] / medians[context, "draft", 1], 2) for context in CONTEXTS}
    print(
        json.dumps(
            {"target_over_draft": ratios, "median_ms": {f"{c} {m} {k}": round(v, 3) for (c, m, k), v in medians.items()}}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
