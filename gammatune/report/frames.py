"""The numbers of stored runs as frames. Times in ms, speeds in tokens per second."""

from functools import lru_cache

import pandas as pd

from gammatune.records import ROUND_FIELDS, TurnLog
from gammatune.report import metrics, statistics
from gammatune.studies.headline import OVERALL, order_tasks

ARM_KEYS = ["label", "policy", "gamma"]
TURN_KEYS = ["repetition", "task", "category", "question_id", "turn"]
QUESTION_KEYS = [*ARM_KEYS, "repetition", "task", "question_id"]
ROUND_SUMS = ("drafted", "accepted", "emitted", "draft_forwards", "draft_ms", "verify_ms", "policy_ms")
TURN_SUMS = ["turns", "tokens", "rounds", *ROUND_SUMS, "prefill_ms", "wall_ms"]
RATIOS = ["speedup", "speedup_std", "speedup_low", "speedup_high", "speedup_total", "repetitions_low", "repetitions_high"]


def count_tokens(turn: TurnLog) -> int:
    """Tokens of an answer, from its ids, a final end of sequence included; the same for every arm, drafted or not."""
    return len(turn.output_ids)


def turn_table(arms) -> pd.DataFrame:
    """One row per turn: who, tokens, rounds, sums over its rounds, prefill_ms, wall_ms. Rows keep the order of the log."""
    return pd.DataFrame([turn_row(arm, turn) for arm in arms for turn in arm.turns])


def turn_row(arm, turn: TurnLog) -> dict:
    row = {key: getattr(arm, key) for key in ARM_KEYS} | {key: getattr(turn, key) for key in TURN_KEYS}
    row |= {"turns": 1, "tokens": count_tokens(turn), "rounds": len(turn.rounds), "finish": turn.finish}
    row |= {name: sum(getattr(r, name) for r in turn.rounds) for name in ROUND_SUMS}
    return row | {"prefill_ms": turn.prefill_ms, "wall_ms": turn.wall_ms}


def question_table(turns: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, repetition and question: sums over its turns, and tokens_per_second = tokens / wall seconds."""
    sums = turns.groupby(QUESTION_KEYS, sort=False, dropna=False)[TURN_SUMS].sum().reset_index()
    sums["tokens_per_second"] = 1000 * sums["tokens"] / sums["wall_ms"]
    return sums


def round_table(arms) -> pd.DataFrame:
    """One row per round, with the arm, the turn and the place of the round in it (`round`, from 0); state as a dict."""
    rows = [
        (arm.label, *(getattr(turn, key) for key in TURN_KEYS), place, *(getattr(r, name) for name in ROUND_FIELDS))
        for arm in arms
        for turn in arm.turns
        for place, r in enumerate(turn.rounds)
    ]
    return pd.DataFrame(rows, columns=["label", *TURN_KEYS, "round", *ROUND_FIELDS])


@lru_cache(maxsize=4)
def results_table(run) -> pd.DataFrame:
    """One row per task and arm, and per arm over all questions (task "overall"), with every metric of a StoredRun."""
    tasks = order_tasks(run.questions["task"])
    parts = [(task, run.questions[run.questions["task"] == task]) for task in tasks] + [(OVERALL, run.questions)]
    return pd.DataFrame([results_row(run, arm, task, part) for task, part in parts for arm in run.arms])


def results_row(run, arm, task: str, part: pd.DataFrame) -> dict:
    rows, baseline = part[part["label"] == arm.label], part[part["policy"] == "ar"]
    row = {"task": task, "label": arm.label, "policy": arm.policy, "gamma": arm.gamma}
    row |= {"questions": len(rows[["task", "question_id"]].drop_duplicates())} | dict.fromkeys(RATIOS, float("nan"))
    if run.has_baseline:  # without one, or with random weights, no ratio of speeds may be formed
        low, high = statistics.speedup_interval(rows, baseline)
        row |= {"speedup": metrics.speedup(rows, baseline), "speedup_std": metrics.speedup_spread(rows, baseline)}
        row |= {"speedup_low": low, "speedup_high": high, "speedup_total": metrics.speedup_total(rows, baseline)}
        low, high = statistics.repetition_interval(statistics.speedup_per_repetition(rows, baseline))
        row |= {"repetitions_low": low, "repetitions_high": high}
    return row | {metric.__name__: metric(rows) for metric in metrics.PER_ARM}


def timing_table(run) -> pd.DataFrame:
    """One row per arm: shares of wall time, and quantiles of the wall time of a turn in milliseconds."""
    rows = []
    for label, turns in run.turns.groupby("label", sort=False):
        shares, quantiles = metrics.time_split(turns), metrics.quantiles(turns["wall_ms"])
        row = {"label": label} | {f"{part}_share": share for part, share in shares.items()}
        rows.append(row | {f"turn_ms_{name}": ms for name, ms in quantiles.items()})
    return pd.DataFrame(rows)


def position_table(run) -> pd.DataFrame:
    """Per drafting arm and position of a block: how often it was reached, and the chance that its token is accepted."""
    tables = {label: metrics.conditional_acceptance(rounds) for label, rounds in run.rounds.groupby("label", sort=False)}
    drafting = {label: table for label, table in tables.items() if len(table)}
    if not drafting:
        return pd.DataFrame(columns=["label", "position", "reached", "accepted", "rate"])
    return pd.concat(drafting, names=["label"]).reset_index()
