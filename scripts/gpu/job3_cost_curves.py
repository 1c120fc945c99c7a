"""Cost curves at the paper's shapes: python scripts/gpu/job3_cost_curves.py [--pairs NAME ...] [--minutes M]

T_draft and T_target(k), k = 1..25, behind 128, 512 and 2,048 tokens (less where a pair addresses less), in both runtimes,
with random weights at the true shapes; and how many bytes per second that reads, beside the device's bandwidth. A pair that
does not fit is left out with one sentence, and so is a pair whose target is quantised, since int8 needs real weights:
`--pairs llama-3.1-8b-70b model_pair.weights=checkpoint` measures that one with checkpoints.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from gammatune.runs.cells import read_json, write_json
from jobs import ROOT, Job, make_parser, run_job

from gammatune.compose import compose_config
from gammatune.config import RUNTIMES, Checkpoint, PairConfig
from gammatune.models.load import Demand, count_cache, count_weights, make_config
from gammatune.replay.prices import CostCurve, read_cost

PAIRS = ("vicuna-68m-7b", "vicuna-160m-13b", "llama-3.2-1b-3.1-8b", "llama-3.1-8b-70b")
BLOCKS = (1, 2, 6, 9, 17, 25)
NOT_FITTING = ("GiB are free", "out of memory")


def work(job: Job) -> str:
    pairs = ["tiny-random"] if job.options.dry_run else job.options.pairs
    job.step("bandwidth.json", lambda path: measure_bandwidth(job, path))
    for pair in pairs:
        for runtime in RUNTIMES:
            job.step(f"costs/{pair}-{runtime}.json", lambda path, key=(pair, runtime): measure_pair(job, key, path))
    job.step("achieved", lambda path: write_table(job, path))
    return f"prices of rounds at true shapes with random weights ({', '.join(pairs)}), and the bandwidth that they reach"


def measure_bandwidth(job: Job, path: Path) -> None:
    size = ["--copy-mib", "8", "--repeats", "2"] if job.options.dry_run else []
    ended = job.run("bandwidth.json", ["benchmarks/bandwidth.py", *size, f"runtime.device={job.device}"])
    write_json(path, ended.last_json)


def measure_pair(job: Job, key: tuple[str, str], path: Path) -> None:
    """A price list, or in its place {"skipped": why}."""
    pair, runtime = key
    settings = [f"model_pair={pair}", "tasks=demo", f"runtime={runtime}", f"runtime.device={job.device}"]
    settings += [] if job.options.dry_run else ["model_pair.weights=random"]
    settings += job.options.settings
    config = compose_config(settings).model_pair
    if config.weights == "random" and config.target.quantization:
        write_json(path, {"skipped": f"{pair}: {config.target.quantization} needs real weights, and these are random."})
        return
    plan = ["--contexts", "16,32", "--gamma-max", "3", "--repeats", "3"] if job.options.dry_run else full_plan(job)
    product = f"{pair}-{runtime}"
    ended = job.run(product, ["-m", "gammatune", "prices", *settings, *plan, "--out", path], allowed=(0, 1, 2))
    if ended.code:
        if not any(words in ended.complaint for words in NOT_FITTING):
            job.refuse(product, ended)
        write_json(path, {"skipped": f"{product}: {ended.complaint}"})


def full_plan(job: Job) -> list[str]:
    return ["--contexts", "128,512,2048", "--gamma-max", "24", "--repeats", str(job.options.repeats)]


def write_table(job: Job, path: Path) -> None:
    bandwidth, rows, skipped = read_json(job.out / "bandwidth.json"), [], []
    for file in sorted((job.out / "costs").glob("*.json")):
        content = read_json(file)
        if "skipped" in content:
            skipped.append(content["skipped"])
        else:
            curve = read_cost(file)
            chosen = compose_config([f"model_pair={curve.facts['pair']}", *job.options.settings]).model_pair
            rows += achieved(curve, chosen)
    path.mkdir(parents=True)
    table = pd.DataFrame(rows)
    notes = [f"Memory reads at {bandwidth['read_gbps']:.1f} GB/s and copies at {bandwidth['copy_gbps']:.1f} GB/s."]
    if rows:
        table["of_read"], table["of_copy"] = (table["gbps"] / bandwidth[f"{name}_gbps"] for name in ("read", "copy"))
        table.to_csv(path / "achieved.csv", index=False)
    text = [*notes, "", table.round(3).to_markdown(index=False) if rows else "", "", *dict.fromkeys(skipped)]
    (path / "achieved.md").write_text("\n".join(text) + "\n")


def achieved(curve: CostCurve, pair: PairConfig) -> list[dict]:
    """Per model, context and block: ms, and GB/s if every matrix and the cache are read once.

    ms of the target is that of a whole verification, judging and reading its result included.
    """
    facts, rows = curve.facts, []
    label = {"pair": facts["pair"], "runtime": facts["runtime"]["name"], "dtype": facts["dtype"]}
    dtype = getattr(torch, facts["dtype"])
    for context in facts["contexts"]:
        blocks = [(pair.target, "target", k, curve.verify[k - 1]) for k in BLOCKS if k <= len(curve.verify)]
        for checkpoint, role, k, price in [(pair.draft, "draft", 1, curve.blind.step), *blocks]:
            ms = float(price.at(context))
            gbps = bytes_read(checkpoint, dtype, context) / ms / 1e6
            rows.append({**label, "model": role, "context": context, "k": k, "ms": ms, "gbps": gbps})
    return rows


def bytes_read(checkpoint: Checkpoint, dtype: torch.dtype, context: int) -> int:
    """By one forward: all layers, the LM head and the cache; of an embedding that is no LM head only single rows."""
    config = make_config(checkpoint.shape)
    layers = count_weights(Demand(config, replace(checkpoint, vocabulary=None, borrows_tables=True), dtype))
    head = (checkpoint.vocabulary or config.vocab_size) * config.hidden_size * dtype.itemsize
    return layers + head + count_cache(config, dtype, context)


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, "cost-curves")
    known = sorted(file.stem for file in (ROOT / "gammatune" / "configs" / "model_pair").glob("*.yaml"))
    parser.add_argument("--pairs", nargs="+", choices=known, default=list(PAIRS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5, help="passes over all block lengths and contexts (5)")
    return run_job(parser, work, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
