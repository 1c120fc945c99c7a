"""How fast is the decoding loop beside transformers' own? python benchmarks/vs_transformers.py [options] [KEY=VALUE ...]

Same pair, prompts, dtype and gamma, greedy: our loop in each runtime against `target.generate`, alone and with
`assistant_model` at a constant number of draft tokens and no confidence threshold. Tokens per second are those of a whole
call, prompt included. Every answer is compared with our autoregressive one in the same dtype, and one that is neither equal
nor a near tie ends the benchmark with exit code 1.

The comparison leans to transformers' side. Given a plain prompt, transformers 5.23 feeds its assistant the whole text again
every round, on top of the cached text; one masked padding token before the prompt avoids that, but puts a mask into every
forward. Which is faster depends on the text's length and the dtype, so assisted generation runs both ways, and ours is held
against the faster. Its calls run in inference mode. A draft with a reduced vocabulary, which only our loop can use,
proposes all tokens on both sides; ours with the reduced one has rows of its own. The last line is one JSON object.
"""

import sys
from dataclasses import replace

import pandas as pd
import torch
from harness import (
    Arm,
    Decoder,
    Speeds,
    build_decoders,
    load_pairs,
    make_parser,
    measure,
    median_interval,
    print_report,
    read_prompts,
    run_benchmark,
)
from transformers import GenerationConfig

from gammatune.config import FORMS, RunConfig
from gammatune.models.pair import Pair
from gammatune.policies import POLICIES

GAMMAS = {"autoregressive": 0, "fixed_2": 2, "fixed_5": 5}
PLAIN, PADDED = THEIRS = ("transformers", "transformers, padded prompt")
REDUCED = ", reduced vocabulary"
LABELS = ["decoding", "by", "dtype"]


def load_sides(config: RunConfig, dtypes: str | None) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """By dtype: pairs for both sides, whose drafts propose all tokens, and those with a reduced vocabulary, if any."""
    draft = config.model_pair.draft
    both = load_pairs(replace(config, model_pair=replace(config.model_pair, draft=replace(draft, vocabulary=None))), dtypes)
    reduced = {} if draft.vocabulary is None else load_pairs(config, dtypes)
    return both, {dtype: replace(pair, target=both[dtype].target) for dtype, pair in reduced.items()}


def make_arms(both: dict[str, Pair], reduced: dict[str, Pair], tokens: int, longest: int) -> list[Arm]:
    """longest: tokens of the longest text, prompt and answer."""
    arms = []
    for pairs, mark in ((both, ""), (reduced, REDUCED)):
        for dtype, pair in pairs.items():
            for name, decoder in build_decoders(pair).items():
                decoder.warm(longest)
                arms += [
                    our_arm(decoder, kind, name + mark, dtype, tokens) for kind, gamma in GAMMAS.items() if gamma or not mark
                ]
    for dtype, pair in both.items():
        arms += [their_arm(pair, kind, by, dtype, tokens) for by in THEIRS for kind in GAMMAS if GAMMAS[kind] or by == PLAIN]
    return arms


def our_arm(decoder: Decoder, kind: str, by: str, dtype: str, tokens: int) -> Arm:
    policy = POLICIES["fixed"](gamma=GAMMAS[kind]) if GAMMAS[kind] else POLICIES["ar"]()
    labels = dict(zip(LABELS, (kind, by, dtype), strict=True))
    return Arm(labels, lambda prompt: {"ids": tuple(decoder.answer(prompt, policy, tokens).output_ids)})


def their_arm(pair: Pair, kind: str, by: str, dtype: str, tokens: int) -> Arm:
    labels = dict(zip(LABELS, (kind, by, dtype), strict=True))
    return Arm(labels, lambda prompt: {"ids": tuple(answer_theirs(pair, GAMMAS[kind], tokens, prompt, by == PADDED))})


@torch.inference_mode()
def answer_theirs(pair: Pair, gamma: int, tokens: int, prompt: list[int], padded: bool = False) -> list[int]:
    ends = {"eos_token_id": list(pair.eos_ids), "pad_token_id": pair.eos_ids[0]}
    steady = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0}
    pair.target.generation_config = GenerationConfig(do_sample=False, **ends)
    pair.draft.generation_config = GenerationConfig(num_assistant_tokens=gamma, **steady, **ends)
    padding = list(pair.eos_ids[:1]) if padded else []
    ids = torch.tensor([padding + prompt], device=pair.device)
    mask = torch.ones_like(ids)
    mask[:, : len(padding)] = 0
    options = {"assistant_model": pair.draft} if gamma else {}
    output = pair.target.generate(ids, attention_mask=mask, max_new_tokens=tokens, **options)
    return output[0, ids.shape[1] :].tolist()


def judge(measured: pd.DataFrame, both: dict[str, Pair], prompts: list[list[int]]) -> pd.DataFrame:
    """A row per answer that is not our eager autoregressive one: its labels, and the verdict on it."""
    found, eager = [], {dtype: Decoder(pair, "eager") for dtype, pair in both.items()}
    answers = measured.drop_duplicates([*LABELS, "input", "ids"])
    ours = answers[(answers["decoding"] == "autoregressive") & (answers["by"] == "eager")]
    references = ours.groupby(["dtype", "input"])["ids"].min()
    for row in answers.itertuples():
        reference = references[row.dtype, row.input]
        if row.ids != reference:
            verdict = eager[row.dtype].judge(prompts[row.input], list(reference), list(row.ids))
            found.append({**{name: getattr(row, name) for name in (*LABELS, "input")}, **vars(verdict)})
    return pd.DataFrame(found, columns=[*LABELS, "input", "status", "position", "margin"])


def tabulate_speeds(speeds: Speeds, differences: pd.DataFrame) -> pd.DataFrame:
    """A row per arm: tokens/s, for ours over transformers' faster arm, and how many answers are not the reference."""
    counts = differences.groupby([*LABELS, "status"]).size()
    rows = []
    for key in speeds.frame:
        row = dict(zip(LABELS, key, strict=True)) | {"tokens_per_second": speeds.of(key)}
        if key[1] not in THEIRS:
            found = median_interval(speeds.ratios(key, speeds.fastest((key[0],), THEIRS, key[2])))
            row |= {"ratio": found["median"], "low": found["low"], "high": found["high"]}
        rows.append(row | {status: int(counts.get((*key, status), 0)) for status in ("near_tie", "different")})
    return pd.DataFrame(rows).sort_values(["decoding", "dtype", "by"], ignore_index=True)


def summarise(speeds: Speeds) -> dict:
    """Each side's fastest, ours over theirs: in the dtype of our fastest autoregressive arm, and in any dtype.

    reduced_vocabulary: the same ratios with a draft that transformers cannot use; empty where the pair has none.
    """
    dtype = speeds.fastest(("autoregressive",), FORMS)[2]
    result = {"dtype": dtype, "runtime": {}, "over_best_dtype": {}, "reduced_vocabulary": {}}
    for kind in GAMMAS:
        ours, theirs = speeds.fastest((kind,), FORMS, dtype), speeds.fastest((kind,), THEIRS, dtype)
        found = median_interval(speeds.ratios(ours, theirs))
        result |= {f"{kind}_ratio": found["median"], f"{kind}_ratio_interval": [found["low"], found["high"]]}
        result["runtime"][kind] = ours[1]
        best = speeds.ratios(speeds.fastest((kind,), FORMS), speeds.fastest((kind,), THEIRS))
        result["over_best_dtype"][kind] = float(best.median())
        reduced = tuple(name + REDUCED for name in FORMS)
        if any(key[0] == kind and key[1] in reduced for key in speeds.frame):
            ours = speeds.fastest((kind,), reduced, dtype)
            result["reduced_vocabulary"][kind] = float(speeds.ratios(ours, theirs).median())
    return result


def report(options, config: RunConfig) -> int:
    both, reduced = load_sides(config, options.dtypes)
    pair = next(iter(both.values()))
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    longest = max(map(len, prompts)) + options.tokens
    measured = measure(make_arms(both, reduced, options.tokens, longest), prompts, pair.device, options.repeats)
    speeds, differences = Speeds(measured, LABELS), judge(measured, both, prompts)
    wrong = differences[differences["status"] == "different"]
    notes = [
        f"ratio: over the faster of transformers' arms in the same dtype, 95 % interval over {len(prompts)} questions.",
        "A padded prompt has one masked token before it: transformers then feeds its assistant no text twice.",
        *(
            f"Wrong answer of {row.decoding} {row.by} {row.dtype} to question {row.input + 1}, from token {row.position} on."
            for row in wrong.itertuples()
        ),
    ]
    table = tabulate_speeds(speeds, differences)
    print_report([table], {**summarise(speeds), "pair": pair.name}, pair.device, notes="\n".join(notes))
    return 1 if len(wrong) else 0


def build_parser():
    numbers = {
        "questions": (6, 2, "prompts, of the first turns of the tasks"),
        "tokens": (64, 1, "longest answer"),
        "repeats": (1, 1, "passes over all prompts"),
    }
    return make_parser(__doc__, numbers, dtypes=True)


def main(words: list[str]) -> int:
    return run_benchmark(build_parser(), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
