"""How near is a decode step to what memory allows? python benchmarks/roofline.py [options] [KEY=VALUE ...]

At batch size 1 a step must read every matrix and the cached keys and values once. The first table says how many bytes that
is and how long it takes at the bandwidth measured here: the floor. The second has steps: one new token for target and draft,
and blocks of 2, 6 and 16 tokens that the target verifies. A draft step comes before each target step, as in decoding, since
what one model leaves in the caches is time for the other. Bandwidth and steps are measured in turn. The floor is for weights
that come from memory: a model that fits the caches can be faster. Only the forward is timed, not the crop after it. The last
line is one JSON object.
"""

import random
import sys
from dataclasses import dataclass

import bandwidth
import pandas as pd
import torch
from harness import Arm, Decoder, build_decoders, load_pairs, make_parser, measure, print_report, run_benchmark, tabulate
from torch import nn

from gammatune.config import RunConfig
from gammatune.errors import UserError
from gammatune.models.load import count_cache

BLOCKS = (1, 2, 6, 16)
LABELS = ["model", "dtype", "runtime", "tokens"]


@dataclass(frozen=True)
class Floor:
    """What one step of a model must read, in bytes."""

    weights: int
    cache: int

    def ms(self, gbps: float) -> float:
        return (self.weights + self.cache) / gbps / 1e6


def count_floor(model: nn.Module, dtype: torch.dtype, context: int) -> Floor:
    """All matrices, as they are held, and the cache. An embedding counts where it is the LM head too, and only once."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    weights = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    return Floor(weights, count_cache(model.config, dtype, context))


def make_arm(decoder: Decoder, dtype: str, tokens: int, text: list[int], context: int) -> Arm:
    """A draft step, then a target step over `tokens`; both once untimed before, since another arm had the caches."""
    new = text[context : context + tokens]

    def step(_) -> dict:
        for _ in range(2):
            found = {"draft": decoder.forward("draft", new[:1]), "target": decoder.forward("target", new)}
        return found

    decoder.fill(text[:context])
    return Arm({"dtype": dtype, "runtime": decoder.name, "tokens": tokens}, step)


def list_steps(measured: pd.DataFrame) -> pd.DataFrame:
    """A row per model, arm and repeat, with its ms; the draft's come from the arms of one token."""
    found = measured.dropna(subset="tokens").astype({"tokens": int})
    steps = found.melt([*LABELS[1:], "input"], ["target", "draft"], var_name="model", value_name="ms")
    return steps[(steps["model"] == "target") | (steps["tokens"] == 1)]


def report(options, config: RunConfig) -> int:
    pairs = load_pairs(config, options.dtypes)
    pair = next(iter(pairs.values()))
    if options.context > pair.context - max(BLOCKS):
        raise UserError(
            f"--context {options.context} leaves no place for a block of {max(BLOCKS)} tokens, since {pair.name} addresses "
            f"{pair.context}: choose at most {pair.context - max(BLOCKS)}."
        )
    text = random.Random(0).choices(range(pair.vocab_size), k=options.context + max(BLOCKS))
    decoders = [(dtype, decoder) for dtype, one in pairs.items() for decoder in build_decoders(one).values()]
    arms = [make_arm(decoder, dtype, n, text, options.context) for dtype, decoder in decoders for n in BLOCKS]
    arms += bandwidth.make_arms(pair.device, options.copy_mib)
    measured = measure(arms, range(options.repeats), pair.device)
    memory = bandwidth.find_bandwidth(measured)

    roles = [(role, dtype, one) for dtype, one in pairs.items() for role in ("target", "draft")]
    floors = {(role, dtype): count_floor(getattr(one, role), one.dtype, options.context) for role, dtype, one in roles}
    floor_ms = {key: floor.ms(memory.read_gbps) for key, floor in floors.items()}
    card = [(*key, floor.weights / 1e6, floor.cache / 1e6, floor_ms[key]) for key, floor in floors.items()]
    table = tabulate(list_steps(measured), LABELS, ["ms"], "ms")
    table.insert(4, "floor_ms", [floor_ms[key] for key in zip(table["model"], table["dtype"], strict=True)])
    table["share"] = table["floor_ms"] / table["ms"]
    table["gbps"] = table["share"] * memory.read_gbps

    steps = table[(table["model"] == "target") & (table["tokens"] == 1)]
    best = steps.loc[steps["ms"].idxmin()]  # of plain decode steps of the target
    result = {"target_share": float(best["share"]), "runtime": best["runtime"], "dtype": best["dtype"]}
    result |= {"bandwidth_gbps": memory.read_gbps, "copy_gbps": memory.copy_gbps, "context": options.context}
    notes = (
        f"Memory reads at {memory.read_gbps:.1f} GB/s ({memory.read_by}), copies at {memory.copy_gbps:.1f} GB/s. "
        f"The floor is what one step must read after {options.context} tokens; share is floor_ms / ms."
    )
    columns = ["model", "dtype", "weights_mb", "cache_mb", "floor_ms"]
    print_report([pd.DataFrame(card, columns=columns), table], result, pair.device, notes=notes)
    return 0


def build_parser():
    numbers = {
        "context": (512, 1, "tokens in the caches"),
        "repeats": (40, 2, "timed passes"),
        "copy_mib": bandwidth.COPY_MIB,
    }
    return make_parser(__doc__, numbers, dtypes=True)


def main(words: list[str]) -> int:
    return run_benchmark(build_parser(), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
