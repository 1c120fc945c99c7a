"""Stored runs as tidy frames: a row per turn, question or round. Times in ms, speeds in tokens per second."""

import pandas as pd

from gammatune.records import ROUND_FIELDS, TurnLog

ARM_KEYS = ["label", "policy", "gamma"]
TURN_KEYS = ["repetition", "task", "category", "question_id", "turn"]
QUESTION_KEYS = [*ARM_KEYS, "repetition", "task", "question_id"]
ROUND_SUMS = ("drafted", "accepted", "emitted", "forwards", "draft_ms", "verify_ms", "policy_ms")
TURN_SUMS = ["turns", "tokens", "rounds", *ROUND_SUMS, "prefill_ms", "wall_ms"]


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
