"""What a draft's form costs and gains: weights as they are or in int8, its whole vocabulary or the most frequent tokens.

python benchmarks/draft_forms.py [options] [KEY=VALUE ...]: for each form the time of a draft step, beside target steps of
one and of gamma + 1 tokens, all in turn; how many of the target's own tokens it proposes (agreement), along answers that the
target decodes once; the tokens that a round of fixed gamma emits, by replay; and from these the modelled speed over the
target alone. Answers do not depend on the form. The last line is one JSON object.
"""

import copy
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from harness import Arm, Decoder, make_parser, measure, print_report, read_prompts, run_benchmark, tabulate
from tqdm import tqdm

from gammatune.config import PairConfig, RunConfig
from gammatune.decoding.sampling import GreedySampler
from gammatune.drafters.base import Drafter, Workplace
from gammatune.drafters.model import DraftModel
from gammatune.errors import UserError
from gammatune.models.draft_vocabulary import find_ranking
from gammatune.models.int8 import quantise
from gammatune.models.pair import Pair, load_pair, reduce_draft
from gammatune.models.sources import locate
from gammatune.policies import POLICIES
from gammatune.replay.simulate import prepare_turn, replay
from gammatune.replay.table import AcceptanceTurn
from gammatune.runtimes.base import build_model

LABELS = ["weights", "vocabulary"]
TARGET = "target"


@dataclass
class Form:
    """A draft in one form, ready to propose."""

    weights: str  # "bf16", as its dtype is called, or "int8"
    vocabulary: int  # tokens that it can propose
    drafter: Drafter


def whole_draft(config: PairConfig) -> PairConfig:
    return replace(config, draft=replace(config.draft, quantization=None, cpu_quantization=None, vocabulary=None))


def build_forms(pair: Pair, ranking: np.ndarray, sizes: list[int], decoder: Decoder) -> list[Form]:
    """Every form, all of them in the decoder's runtime. The pair's own draft is whole and as its dtype is."""
    named = str(pair.dtype).split(".")[-1]
    drafts = {named: pair.draft, "int8": quantise(copy.deepcopy(pair.draft))}
    forms = []
    for weights, draft in drafts.items():
        for size in (*sizes, None):
            made = replace(pair, draft=draft)
            whole = draft is pair.draft and size is None  # the decoder has it
            drafter = decoder.engine.drafter if whole else build_drafter(reduce_draft(made, size, ranking), decoder)
            forms.append(Form(weights, size or pair.vocab_size, drafter))
    return forms


def build_drafter(pair: Pair, decoder: Decoder) -> Drafter:
    """The pair's draft in the decoder's runtime."""
    drafter, model = DraftModel(), build_model(pair, "draft", decoder.name)
    drafter.attach(Workplace(decoder.device, pair.vocab_size, frozenset(pair.eos_ids), model, pair.draft_ids))
    return drafter


def read_ranking(config: PairConfig, pair: Pair, most: int) -> np.ndarray:
    draft = replace(config.draft, vocabulary=most)
    return find_ranking(draft, pair.vocab_size, None if config.made_up else locate("draft", draft, config.source).folder)


def trace(form: Form, prompt: list[int], answer: list[int], depth: int) -> AcceptanceTurn:
    form.drafter.begin(prompt, GreedySampler())
    found = form.drafter.trace(prompt, answer, len(answer), depth)
    ids = np.array(answer, dtype=np.int32)
    return AcceptanceTurn(0, "", "", 0, len(prompt), len(answer), "length", ids, found)


def describe_aim(form: Form, prompts: list[list[int]], answers: list[list[int]], gamma: int) -> dict:
    """Agreement and tokens a round of fixed gamma, over all answers."""
    turns = [trace(form, *each, gamma) for each in zip(prompts, answers, strict=True)]
    rounds = replay([prepare_turn(turn) for turn in turns], POLICIES["fixed"](gamma=gamma))
    matches = np.concatenate([turn.match for turn in turns])
    return {"agreement": float(matches.mean()), "tokens_a_round": sum(map(len, answers)) / len(rounds.drafted)}


def make_arms(forms: list[Form], decoder: Decoder, text: list[int], context: int, gamma: int) -> list[Arm]:
    """One step of each form, and the target's over 1 and gamma + 1 tokens."""

    def make(labels: tuple, role, tokens: int) -> Arm:
        fed = text[context : context + tokens]
        return Arm(dict(zip(LABELS, labels, strict=True)), lambda _: {"ms": decoder.forward(role, fed)})

    keys = {(form.weights, form.vocabulary): form.drafter.workplace.model for form in forms}
    decoder.models |= keys
    decoder.fill(text[:context])
    return [make(key, key, 1) for key in keys] + [make((TARGET, n), TARGET, n) for n in (1, gamma + 1)]


def read_sizes(text: str) -> list[int]:
    """Raises UserError for something else than numbers with commas between."""
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise UserError(f"--vocabularies {text} must be whole numbers from 1, with commas between.")
    return sizes


def report(options, config: RunConfig) -> int:
    sizes = read_sizes(options.vocabularies)
    pair_config = whole_draft(config.model_pair)
    pair = load_pair(pair_config, "cpu", config.runtime.dtype)
    ranking = read_ranking(pair_config, pair, max(sizes))
    decoder = Decoder(pair, config.runtime.name, torch.get_num_threads())
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    policy = POLICIES["fixed"](gamma=options.gamma)
    bar = tqdm(prompts, desc="answers", disable=None)
    answers = [decoder.answer(prompt, policy, options.tokens).output_ids for prompt in bar]
    forms = build_forms(pair, ranking, sizes, decoder)
    aims = {(f.weights, f.vocabulary): describe_aim(f, prompts, answers, options.gamma) for f in tqdm(forms, disable=None)}
    text = (prompts[0] + answers[0]) * (2 + options.context // len(prompts[0]))
    arms = make_arms(forms, decoder, text, options.context, options.gamma)
    measured = measure(arms, range(options.repeats), decoder.pair.device)
    table = tabulate(measured, LABELS, ["ms"], "ms").set_index(LABELS)
    t_target, t_verify = (float(table.loc[(TARGET, n), "ms"]) for n in (1, options.gamma + 1))
    rows = []
    for key, aim in aims.items():
        t_draft = float(table.loc[key, "ms"])
        speed = aim["tokens_a_round"] * t_target / (options.gamma * t_draft + t_verify)
        bounds = {name: float(table.loc[key, name]) for name in ("low", "high")}
        rows.append(dict(zip(LABELS, key, strict=True)) | {"draft_ms": t_draft} | bounds | aim)
        rows[-1] |= {"ratio": t_target / t_draft, "modelled_speedup": speed}
    result = {"pair": pair.name, "gamma": options.gamma, "target_ms": t_target, "verify_ms": t_verify}
    result |= {"answer_tokens": sum(map(len, answers)), "context": options.context, "runtime": decoder.name}
    print_report([pd.DataFrame(rows)], result, pair.device)
    return 0


def main(words: list[str]) -> int:
    numbers = {
        "questions": (6, 1, "of the tasks, first turns"),
        "tokens": (48, 2, "longest answer"),
        "gamma": (5, 1, "of the rounds"),
        "context": (256, 1, "tokens in the caches while steps are timed"),
        "repeats": (30, 2, "of each step"),
    }
    parser = make_parser(__doc__, numbers)
    parser.add_argument(
        "--vocabularies", default="2048,8192,32768", metavar="NUMBERS", help="beside the whole one (%(default)s)"
    )
    return run_benchmark(parser, report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
