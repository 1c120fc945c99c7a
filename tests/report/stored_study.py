"""A seeded study on disk, written through the real files: what `record` and `prices` leave, without a model."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gammatune.files import write_json
from gammatune.policies import POLICIES
from gammatune.replay.prices import Drafting, Price, PriceList, from_ratio, prices_to_json
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, write_table
from gammatune.studies.bounds import derive_bounds, store_bounds
from gammatune.studies.importers.rounds import build_schedule
from gammatune.studies.importers.specbench import import_answers, read_drafted
from gammatune.studies.study import PRICES_FILE, TABLE_FILE, Study, read_study
from gammatune.traces import MISMATCH, SignalColumns, TextTrace

TASK_ODDS = {"mt_bench": 0.5, "qa": 0.35, "math_reasoning": 0.7, "translation": 0.3}
BUDGET, GAMMA_MAX = 60, 24
LOG_GAMMA, RATIOS = 3, [4.0, 12.0]
LOGGED = ("fixed", "gammatune", "hf_heuristic")


def draw_signals(odds: np.ndarray, rng: np.random.Generator) -> SignalColumns:
    """A draft that is roughly honest: its top-1 probability lies around its chance to be right."""
    top1 = np.clip(odds + rng.normal(0, 0.1, len(odds)), 0.02, 0.99).round(4)
    return SignalColumns(top1, (-np.log(top1) * 1.5).round(4), (0.8 * top1).round(4))


def draw_turn(rng: np.random.Generator, task: str, question: int, turn: int) -> AcceptanceTurn:
    """Easy and hard stretches of five tokens; two in three answers end before the budget, some blocks by themselves."""
    tokens = BUDGET if rng.random() < 1 / 3 else int(rng.integers(15, BUDGET))
    odds = np.clip(np.repeat(rng.normal(TASK_ODDS[task], 0.25, tokens // 5 + 1), 5)[:tokens], 0.05, 0.97)
    match = (rng.random(tokens) < odds).astype(np.int8)
    wrong = np.flatnonzero(match == MISMATCH)
    left = np.clip(BUDGET - 2 - wrong, 0, GAMMA_MAX)
    steps = np.minimum(left, rng.geometric(0.05, len(wrong)) - 1).astype(np.int8)
    return AcceptanceTurn(
        question_id=question,
        category=task,
        task=task,
        turn=turn,
        prompt_tokens=int(rng.integers(10, 80)),
        budget=BUDGET,
        finish="length" if tokens == BUDGET else "eos",
        output_ids=np.arange(tokens, dtype=np.int32),
        trace=TextTrace(
            match=match,
            signals=draw_signals(odds, rng),
            steps=steps,
            ended=steps < left,
            continuations=draw_signals(rng.uniform(0.05, 0.5, steps.sum()), rng),
        ),
    )


def draw_study_table(questions: int = 6, seed: int = 11) -> AcceptanceTable:
    """So many questions of each task; those of mt_bench have two turns."""
    rng = np.random.default_rng(seed)
    turns = [
        draw_turn(rng, task, 100 * place + number, turn)
        for place, task in enumerate(TASK_ODDS)
        for number in range(questions)
        for turn in range(2 if task == "mt_bench" else 1)
    ]
    return AcceptanceTable(turns, {"pair": "made", "gamma_max": GAMMA_MAX})


def make_curve() -> PriceList:
    return PriceList(
        blind=Drafting(step=Price(2.0, 0.001), start=Price(0.5), catch_up=Price(0.25)),
        watched=Drafting(step=Price(2.2, 0.001), start=Price(0.5), catch_up=Price(0.25)),
        verify=[Price(20.0 + k, 0.004) for k in range(25)],
        rest=Price(0.125),
        prefill_target=Price(5.0, 0.5),
        prefill_both=Price(6.0, 0.7),
        facts={"provenance": {"device": "Test CPU"}},
    )


def store_study(folder: Path, table: AcceptanceTable | None = None) -> Path:
    """Write the table and its prices; returns the folder."""
    folder.mkdir(parents=True)
    write_table(table or draw_study_table(), folder / TABLE_FILE)
    write_json(folder / PRICES_FILE, prices_to_json(make_curve()))
    return folder


def import_log(file: Path) -> AcceptanceTable:
    """A table with unknown matches: what is left of eight answers once Spec-Bench's format has logged them."""
    turns = draw_study_table(questions=2).turns
    logs = replay(prepare(AcceptanceTable(turns)), POLICIES["fixed"](gamma=LOG_GAMMA), keep_rounds=True).logs
    emitted = [[r.emitted for r in log] for log in logs]
    lines = [log_line(n, turn.task, lengths) for n, (turn, lengths) in enumerate(zip(turns, emitted, strict=True))]
    file.write_text("".join(lines))
    return import_answers(read_drafted(file, build_schedule("fixed", LOG_GAMMA, BUDGET)))


def log_line(question: int, category: str, emitted: list[int]) -> str:
    rounds = {"decoding_steps": [len(emitted)], "new_tokens": [sum(emitted)], "accept_lengths": emitted}
    line = {"question_id": question, "category": category, "model_id": "made-temp-0.0"}
    return json.dumps(line | {"choices": [{"turns": ["words"], **rounds}]}) + "\n"


def store_bounded_log(folder: Path, table: AcceptanceTable) -> Path:
    """Write what `bounds` stores of an imported log; returns the folder."""
    store_bounds(
        derive_bounds(table, [from_ratio(ratio) for ratio in RATIOS], {name: POLICIES[name]() for name in LOGGED}), folder
    )
    return folder


PLACE = TemporaryDirectory()


@cache
def made_folder() -> Path:
    """One stored study for all tests; none may change it."""
    return store_study(Path(PLACE.name) / "reference" / "made")


@cache
def made_study() -> Study:
    return read_study(made_folder())


@cache
def made_log() -> AcceptanceTable:
    return import_log(Path(PLACE.name) / "log.jsonl")


@cache
def made_bounds() -> Path:
    """One stored folder of bounds for all tests; none may change it."""
    return store_bounded_log(Path(PLACE.name) / "reference" / "log", made_log())
