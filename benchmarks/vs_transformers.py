"""How fast is the decoding loop beside transformers' own? python benchmarks/vs_transformers.py [options] [KEY=VALUE ...]

Same pair, prompts, dtype and gamma, greedy: our loop in each runtime against `target.generate`, alone and with
`assistant_model` at a constant number of draft tokens and no confidence threshold. Tokens per second are those of a whole
call, prompt included. Arms take turns question by question; every answer is compared with our autoregressive one in the
same dtype, and one that is neither equal nor a near tie ends the benchmark with exit code 1.

The comparison leans to transformers' side. Given a plain prompt, transformers 5.23 feeds its assistant the whole text again
every round, on top of the cached text; one masked padding token before the prompt avoids that, but puts a mask into every
forward. Which is faster depends on the text's length and the dtype, so assisted generation runs both ways, and ours is held
against the faster. Its calls run in inference mode. A draft with a reduced output head, which only our loop can use, has a
whole head on both sides; ours with the reduced head has rows of its own. The last line is one JSON object.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pandas as pd
import torch
from gammatune.decoding.clock import Clock
from harness import (
    build_runtimes,
    describe_machine,
    load_pairs,
    make_parser,
    median_interval,
    print_machine,
    print_result,
    print_table,
    read_prompts,
    rotate,
    run_benchmark,
    time_call,
    to_records,
)
from tqdm import tqdm
from transformers import GenerationConfig

from gammatune.config import RUNTIMES, DecodeConfig, RunConfig
from gammatune.decoding.exactness import compare_answers
from gammatune.decoding.loop import generate_autoregressive, generate_speculative
from gammatune.models.pair import Pair
from gammatune.policies import POLICIES
from gammatune.runtimes.base import PairRuntime, eager_runtime

GAMMAS = {"autoregressive": 0, "fixed_2": 2, "fixed_5": 5}
PLAIN, PADDED = THEIRS = ("transformers", "transformers, padded prompt")
REDUCED = ", reduced head"


@dataclass(frozen=True)
class Arm:
    """One way to answer. by: a runtime, perhaps with REDUCED behind it, or one of THEIRS. answer: prompt ids to new ids."""

    kind: str
    by: str
    dtype: str
    answer: Callable[[list[int]], list[int]] = field(compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.by, self.dtype


@dataclass
class Measured:
    """speeds: tokens/s, a row per (question, repeat), a column per arm's key. answers: (key, question) to what came out."""

    speeds: pd.DataFrame
    answers: dict[tuple, set[tuple[int, ...]]]

    def of_questions(self, key: tuple) -> pd.Series:
        return self.speeds[key].groupby(level="question").median()

    def speed(self, key: tuple) -> float:
        return float(self.of_questions(key).median())

    def ratios(self, ours: tuple, theirs: tuple) -> pd.Series:
        """Per question: the median over repeats of ours / theirs in the same repeat."""
        return (self.speeds[ours] / self.speeds[theirs]).groupby(level="question").median()

    def fastest(self, kind: str, by: tuple[str, ...], dtype: str | None = None) -> tuple:
        """The fastest arm of a kind among those `by` names, in one dtype or in any."""
        keys = [key for key in self.speeds if key[0] == kind and key[1] in by and dtype in (None, key[2])]
        return max(keys, key=self.speed)


def load_sides(config: RunConfig, dtypes: str | None) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """By dtype: pairs for both sides, whose drafts have a whole head, and pairs with the reduced one where there is one."""
    draft = config.model_pair.draft
    both = load_pairs(replace(config, model_pair=replace(config.model_pair, draft=replace(draft, vocabulary=None))), dtypes)
    reduced = {} if draft.vocabulary is None else load_pairs(config, dtypes)
    return both, {dtype: replace(pair, target=both[dtype].target) for dtype, pair in reduced.items()}


def build_arms(both: dict[str, Pair], reduced: dict[str, Pair], tokens: int) -> list[Arm]:
    arms = []
    for dtype, pair in both.items():
        for name, runtime in build_runtimes(pair).items():
            arms += [Arm(kind, name, dtype, partial(answer_ours, runtime, gamma, tokens)) for kind, gamma in GAMMAS.items()]
        arms += [Arm(kind, PLAIN, dtype, partial(answer_theirs, pair, gamma, tokens)) for kind, gamma in GAMMAS.items()]
        padded = {kind: partial(answer_theirs, pair, gamma, tokens, padded=True) for kind, gamma in GAMMAS.items() if gamma}
        arms += [Arm(kind, PADDED, dtype, answer) for kind, answer in padded.items()]
    for dtype, pair in reduced.items():
        for name, runtime in build_runtimes(pair).items():
            answers = {kind: partial(answer_ours, runtime, gamma, tokens) for kind, gamma in GAMMAS.items() if gamma}
            arms += [Arm(kind, f"{name}{REDUCED}", dtype, answer) for kind, answer in answers.items()]
    return arms


def answer_ours(runtime: PairRuntime, gamma: int, tokens: int, prompt: list[int]) -> list[int]:
    decode = DecodeConfig(max_new_tokens=tokens)
    if gamma == 0:
        return generate_autoregressive(runtime, prompt, decode).output_ids
    return generate_speculative(runtime, prompt, POLICIES["fixed"](gamma=gamma), decode).output_ids


@torch.inference_mode()
def answer_theirs(pair: Pair, gamma: int, tokens: int, prompt: list[int], padded: bool = False) -> list[int]:
    ends = list(pair.eos_ids)
    pair.target.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0], do_sample=False)
    pair.draft.generation_config = GenerationConfig(
        eos_token_id=ends,
        pad_token_id=ends[0],
        num_assistant_tokens=gamma,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0,
    )
    padding = [ends[0]] if padded else []
    ids = torch.tensor([padding + prompt], device=pair.device)
    mask = torch.ones_like(ids)
    mask[:, : len(padding)] = 0
    options = {"assistant_model": pair.draft} if gamma else {}
    output = pair.target.generate(ids, attention_mask=mask, max_new_tokens=tokens, **options)
    return output[0, ids.shape[1] :].tolist()


def measure(arms: list[Arm], prompts: list[list[int]], repeats: int, clock: Clock) -> Measured:
    """Every arm on every prompt, next to each other; one answer of each beforehand, untimed."""
    rows, answers, step = [], {}, 0
    with tqdm(total=len(arms) * (1 + repeats * len(prompts)), unit="answer", disable=None) as bar:
        for arm in arms:
            arm.answer(prompts[0])
            bar.update()
        for repeat in range(repeats):
            for question, prompt in enumerate(prompts):
                for arm in rotate(arms, step):
                    bar.set_description(" ".join(arm.key))
                    ids, seconds = time_call(clock, partial(arm.answer, prompt))
                    rows.append((question, repeat, arm.key, len(ids) / seconds))
                    answers.setdefault((arm.key, question), set()).add(tuple(ids))
                    bar.update()
                step += 1
    frame = pd.DataFrame(rows, columns=["question", "repeat", "arm", "speed"])
    return Measured(frame.pivot(index=["question", "repeat"], columns="arm", values="speed"), answers)


def judge(measured: Measured, pairs: dict[str, Pair], prompts: list[list[int]]) -> pd.DataFrame:
    """One row per answer that is not our eager autoregressive one: arm, question, and the verdict on it."""
    found = []
    for (key, question), answers in measured.answers.items():
        reference = min(measured.answers[("autoregressive", "eager", key[2]), question])
        for answer in answers - {reference}:
            runtime = eager_runtime(pairs[key[2]])
            verdict = compare_answers(runtime, prompts[question], list(reference), list(answer))
            found.append({"arm": key, "question": question, **vars(verdict)})
    return pd.DataFrame(found, columns=["arm", "question", "status", "position", "margin"])


def tabulate(measured: Measured, differences: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: tokens/s, for ours over transformers' faster arm, and how many answers are not the reference."""
    rows = []
    for key in measured.speeds:
        kind, by, dtype = key
        row = {"decoding": kind, "by": by, "dtype": dtype, "tokens_per_second": measured.speed(key)}
        theirs = measured.fastest(kind, THEIRS, dtype)
        ratio = median_interval(measured.ratios(key, theirs)) if by not in THEIRS else (None,) * 3
        row |= dict(zip(("ratio", "low", "high"), ratio, strict=True))
        mine = differences[differences["arm"] == key]["status"]
        rows.append(row | {status: int((mine == status).sum()) for status in ("near_tie", "different")})
    return pd.DataFrame(rows).sort_values(["decoding", "dtype", "by"], ignore_index=True)


def summarise(measured: Measured) -> dict:
    """Each side's fastest, ours over theirs: in the dtype of our fastest autoregressive arm, and in any dtype.

    reduced_head: the same ratios with a draft that transformers cannot use; empty where the pair has none.
    """
    dtype = measured.fastest("autoregressive", RUNTIMES)[2]
    found = {"dtype": dtype, "runtime": {}, "over_best_dtype": {}, "reduced_head": {}}
    for kind in GAMMAS:
        ours, theirs = measured.fastest(kind, RUNTIMES, dtype), measured.fastest(kind, THEIRS, dtype)
        median, low, high = median_interval(measured.ratios(ours, theirs))
        found |= {f"{kind}_ratio": median, f"{kind}_ratio_interval": [low, high]}
        found["runtime"][kind] = ours[1]
        best = measured.fastest(kind, RUNTIMES), measured.fastest(kind, THEIRS)
        found["over_best_dtype"][kind] = float(measured.ratios(*best).median())
    for kind in dict.fromkeys(key[0] for key in measured.speeds if key[1].endswith(REDUCED)):
        ours = measured.fastest(kind, tuple(name + REDUCED for name in RUNTIMES), dtype)
        found["reduced_head"][kind] = float(measured.ratios(ours, measured.fastest(kind, THEIRS, dtype)).median())
    return found


def report(options, config: RunConfig) -> int:
    both, reduced = load_sides(config, options.dtypes)
    pair = next(iter(both.values()))
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    measured = measure(build_arms(both, reduced, options.tokens), prompts, options.repeats, Clock(pair.device))
    differences = judge(measured, both, prompts)
    table, machine = tabulate(measured, differences), describe_machine(pair.device)
    print_machine(machine)
    print_table(table, 3)
    print(f"\nratio: over the faster of transformers' arms in the same dtype, 95 % interval over {len(prompts)} questions.")
    print("A padded prompt has one masked token before it: transformers then feeds its assistant no text twice.")
    wrong = differences[differences["status"] == "different"]
    for row in wrong.itertuples():
        print(f"Wrong answer of {' '.join(row.arm)} to question {row.question + 1}, from token {row.position} on.")
    print_result({**summarise(measured), **machine, "pair": pair.name, "rows": to_records(table)})
    return 1 if len(wrong) else 0


def main(words: list[str]) -> int:
    numbers = {
        "questions": (6, 2, "prompts, of the first turns of the tasks"),
        "tokens": (64, 1, "longest answer"),
        "repeats": (1, 1, "passes over all prompts"),
    }
    return run_benchmark(make_parser(__doc__, numbers), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
