"""Our arms beside engines that read the same GGUF pair. python benchmarks/vs_cpu_engines.py [options] [KEY=VALUE ...]

Same prompts as ids, greedy, same longest answer, same threads, all arms in turn in one process: the target alone, with its
draft at each fixed length, and adaptively (ours: GammaTune+; theirs: their own thresholds of confidence). An engine runs the
forms that it has, so weights differ in bits, and the table names them. Tokens per second are those of a whole call, prompt
included. Engines that are not installed are named and left out.

Our speculative answers must be our target's own: one that is neither equal nor a near tie ends the benchmark with exit code
1. An engine's arithmetic is its own, so its answers are only described: how many are equal, and where they first differ. The
last line is one JSON object.
"""

import sys
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from engines import ADAPTIVE, ALONE, CONFIDENCE, ENGINES, Engine, Job, Way, weigh
from harness import Arm, Decoder, Speeds, make_parser, measure, median_interval, print_report, read_prompts, run_benchmark

from gammatune.config import PairConfig, RunConfig
from gammatune.decoding.exactness import first_difference
from gammatune.errors import UserError
from gammatune.models.pair import load_pair
from gammatune.models.sources import Files, locate
from gammatune.policies import POLICIES

OURS = "gammatune"
LABELS = ["decoding", "by", "weights"]


@dataclass(frozen=True)
class Agreement:
    """An arm's answers beside those of its own target alone; those of an engine's target alone beside ours."""

    equal: int  # answers that are the same ids
    differs_at: float | None  # median index of the first other token in the rest; None where there is no rest


@dataclass
class Bench:
    """All that is measured, loaded."""

    decoder: Decoder  # ours
    prompts: list[list[int]]  # ids
    arms: list[Arm]
    notes: list[str]  # a sentence for each thing that an engine refuses or that was changed for it


def find_engines() -> list[Engine]:
    """Those that are installed. Raises UserError where none is."""
    found = [engine for engine in ENGINES if engine.installed]
    if not found:
        raise UserError(
            f"Of the engines to compare with ({', '.join(engine.title for engine in ENGINES)}) none is installed: run `pip "
            f"install {ENGINES[0].package}`."
        )
    return found


def read_gammas(text: str) -> tuple[int, ...]:
    """Raises UserError unless the text is different whole numbers above 0 with commas between them."""
    numbers = tuple(int(word) if word.isdecimal() else 0 for word in text.split(","))
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise UserError(f"--gammas {text} must be different whole numbers of 1 or more, such as 3,5.")
    return numbers


def locate_files(pair: PairConfig) -> dict[str, Files]:
    """By role. Raises UserError for a pair of other files than GGUF, which is all that every engine reads."""
    refusal = f"The engines read GGUF files, and the pair {pair.name} is none: choose model_pair=qwen2.5-coder-0.5b-1.5b."
    if pair.made_up:
        raise UserError(refusal)
    files = {role: locate(role, getattr(pair, role), pair.source) for role in ("target", "draft")}
    if any(found.gguf is None for found in files.values()):
        raise UserError(refusal)
    return files


def our_arms(decoder: Decoder, gammas: tuple[int, ...], tokens: int, bits: dict[str, float]) -> list[Arm]:
    """bits: of a weight, by role."""
    policies = {ALONE: POLICIES["ar"]()}
    policies |= {f"fixed_{gamma}": POLICIES["fixed"](gamma=gamma) for gamma in gammas}
    policies[ADAPTIVE] = POLICIES["gammatune_plus"]()

    def make(decoding: str) -> Way:
        held = (bits["target"],) if decoding == ALONE else (bits["target"], bits["draft"])
        return Way(decoding, held, lambda prompt: decoder.answer(prompt, policies[decoding], tokens).output_ids)

    return [make_arm(make(decoding), OURS) for decoding in policies]


def make_arm(way: Way, by: str) -> Arm:
    weights = " + ".join(f"{bits:.2g}" for bits in way.bits) + " bits"
    labels = dict(zip(LABELS, (way.decoding, by, weights), strict=True))
    return Arm(labels, lambda prompt: {"ids": tuple(way.answer(prompt))})


def compare(measured: pd.DataFrame, ends: tuple[int, ...]) -> dict[tuple, Agreement]:
    """By an arm's labels, for all but our target alone. ends: ids that end an answer, which not every engine returns."""
    bare = measured["ids"].map(lambda ids: ids[:-1] if ids and ids[-1] in ends else ids)
    first = measured.assign(ids=bare).drop_duplicates([*LABELS, "input"])
    answers = {key: group.set_index("input")["ids"] for key, group in first.groupby(LABELS, sort=False)}
    alone = {by: key for key in answers for kind, by, _ in [key] if kind == ALONE}
    found = {}
    for key, given in answers.items():
        reference = answers[alone[OURS if key[0] == ALONE else key[1]]]
        places = [first_difference(reference[number], ids) for number, ids in given.items()]
        others = pd.Series([place for place in places if place is not None], dtype=float)
        if key != alone[OURS]:
            found[key] = Agreement(len(places) - len(others), None if others.empty else float(others.median()))
    return found


def judge_ours(measured: pd.DataFrame, decoder: Decoder, prompts: list[list[int]]) -> list[str]:
    """A sentence for each answer of ours that is neither our target's own nor a near tie."""
    ours = measured[measured["by"] == OURS].drop_duplicates(["decoding", "input", "ids"])
    references = ours[ours["decoding"] == ALONE].groupby("input")["ids"].first()
    wrong = []
    for row in ours.itertuples():
        verdict = decoder.judge(prompts[row.input], list(references[row.input]), list(row.ids))
        if verdict.status == "different":
            wrong.append(f"Wrong answer of {row.decoding} to question {row.input + 1}, from token {verdict.position} on.")
    return wrong


def tabulate(speeds: Speeds, agreements: dict[tuple, Agreement]) -> pd.DataFrame:
    """A row per arm: tokens/s, over its own target alone, ours of the same kind over it, and how its answers compare."""
    rows = []
    for key in sorted(speeds.frame, key=lambda key: (key[1] != OURS, key[1], key)):
        kind, by, _ = key
        row = dict(zip(LABELS, key, strict=True)) | {"tokens_per_second": speeds.of(key)}
        if kind != ALONE:
            row |= name_interval(speeds.ratios(key, speeds.fastest((ALONE,), (by,))), "speedup")
        if by != OURS:
            row |= name_interval(speeds.ratios(speeds.fastest((kind,), (OURS,)), key), "ours")
        if key in agreements:
            row |= asdict(agreements[key])
        rows.append(row)
    return pd.DataFrame(rows)


def name_interval(values: pd.Series, name: str) -> dict[str, float]:
    found = median_interval(values)
    return {name: found["median"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def summarise(speeds: Speeds) -> dict:
    """Ours over each engine's, each side with its fastest arm: alone, at a fixed length, adaptively, and of all of these."""
    kinds = tuple(speeds.frame.columns.unique(LABELS[0]))
    fixed = tuple(kind for kind in kinds if kind.startswith("fixed_"))
    groups = {ALONE: (ALONE,), "best_fixed": fixed, ADAPTIVE: (ADAPTIVE,), "best": kinds}
    result = {}
    for by in speeds.frame.columns.unique(LABELS[1]):
        for name, group in groups.items() if by != OURS else ():
            ours, theirs = (speeds.fastest(group, (side,)) for side in (OURS, by))
            if theirs is not None:
                found = median_interval(speeds.ratios(ours, theirs))
                result.setdefault(by, {})[name] = found | {"ours": ours[0], "theirs": theirs[0]}
    return result


def describe_columns(questions: int) -> list[str]:
    return [
        "weights: bits of a weight, target + draft.",
        f"speedup: over the same engine's target alone; low and high are 95 % intervals over {questions} questions.",
        "ours: our arm of the same decoding over this one.",
        f"adaptive: GammaTune+ by us; an engine stops a draft at a token of less than {CONFIDENCE:g} of the probability.",
        "equal: answers like those of the same engine's target alone, or for that target like those of ours.",
        "differs_at: in the other answers, the median index of the first token that differs.",
    ]


def name_missing(engines: list[Engine]) -> list[str]:
    absent = [engine for engine in ENGINES if engine not in engines]
    return [f"{each.title} is not installed: run `pip install {each.package}` to compare with it." for each in absent]


def load_bench(options, config: RunConfig, engines: list[Engine]) -> Bench:
    """Our pair first, since reading it takes the most memory; its first form is let go before engines load."""
    gammas = read_gammas(options.gammas)
    if config.runtime.device not in ("auto", "cpu"):
        raise UserError(f"runtime.device={config.runtime.device} is not compared here: leave it out, or set it to cpu.")
    files = locate_files(config.model_pair)
    pair = load_pair(config.model_pair, "cpu", config.runtime.dtype)
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    context, threads = max(map(len, prompts)) + options.tokens, torch.get_num_threads()
    decoder = Decoder(pair, config.runtime.name, threads, release=True)
    decoder.warm(context)
    weights = {role: weigh(found) for role, found in files.items()}
    job = Job(
        weights["target"], weights["draft"], pair.eos_ids, gammas, options.tokens, context, threads, pair.tokenizer.encode
    )
    offers = {engine.title: engine.load(job) for engine in engines}
    bits = {
        role: 8 if form == "int8" else 8 * pair.dtype.itemsize for role, form in zip(files, pair.quantization, strict=True)
    }
    arms = our_arms(decoder, gammas, options.tokens, bits)
    arms += [make_arm(way, title) for title, offer in offers.items() for way in offer.ways]
    return Bench(decoder, prompts, arms, [note for offer in offers.values() for note in offer.notes])


def report(options, config: RunConfig) -> int:
    engines = find_engines()
    bench = load_bench(options, config, engines)
    pair = bench.decoder.pair
    measured = measure(bench.arms, bench.prompts, pair.device, options.repeats)
    speeds, wrong = Speeds(measured, LABELS), judge_ours(measured, bench.decoder, bench.prompts)
    notes = bench.notes + name_missing(engines)
    result = {
        "ours_over": summarise(speeds),
        "engines": {engine.title: engine.version for engine in engines},
        "runtime": bench.decoder.name,
        "pair": pair.name,
        "notes": notes,
    }
    printed = "\n".join([*describe_columns(len(bench.prompts)), *notes, *wrong])
    print_report([tabulate(speeds, compare(measured, pair.eos_ids))], result, pair.device, notes=printed)
    return 1 if wrong else 0


def build_parser():
    numbers = {
        "questions": (6, 2, "prompts, of the first turns of the tasks"),
        "tokens": (64, 1, "longest answer"),
        "repeats": (1, 1, "passes over all prompts"),
    }
    parser = make_parser(__doc__, numbers)
    parser.add_argument("--gammas", default="3,5", metavar="N,N", help="fixed numbers of draft tokens (3,5)")
    return parser


def main(words: list[str]) -> int:
    return run_benchmark(build_parser(), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
