"""Acceptance tables made by hand, or drawn from a seed, without a model."""

import numpy as np

from gammatune.policies import POLICIES
from gammatune.replay.table import MISMATCH, AcceptanceTable, AcceptanceTurn, Signals

LENGTH_ONLY = [name for name, option in POLICIES.items() if not option.rule.watches_draft]
MATCHES = {"1": 1, "0": 0, "?": -1}


def make_signals(rng: np.random.Generator, size: int) -> Signals:
    return Signals(*(rng.random(size).round(4) for _ in range(3)))


def make_turn(matches: str, tails: list[tuple[int, bool]] | None = None, watched: bool = True, **fields) -> AcceptanceTurn:
    """One answer: matches such as "110?"; tails: (steps, ended) per mismatch, by default four steps that do not end."""
    match = np.array([MATCHES[each] for each in matches], np.int8)
    wrong, rng = int((match == MISMATCH).sum()), np.random.default_rng(len(matches))
    steps, ended = zip(*(tails or [(4, False)] * wrong), strict=True) if wrong and watched else ((), ())
    plain = {"question_id": 1, "category": "qa", "task": "qa", "turn": 0, "prompt_tokens": 10, "finish": "length"}
    plain |= {"budget": len(match), **fields}
    return AcceptanceTurn(
        **plain,
        output_ids=np.arange(100, 100 + len(match), dtype=np.int32),
        match=match,
        signals=make_signals(rng, len(match)) if watched else None,
        tail_steps=np.array(steps, np.int8),
        tail_ended=np.array(ended, bool),
        tails=make_signals(rng, sum(steps)) if watched else None,
    )


def draw_turn(rng: np.random.Generator, question: int, turn: int, watched: bool) -> AcceptanceTurn:
    """As a recording would leave it: tails reach as far as any block could, and some of them end the sequence."""
    tokens = int(rng.integers(1, 30))
    matches = rng.random(tokens) < rng.choice([0.2, 0.6, 0.9, 1.0])
    ended_early = rng.random() < 0.5
    budget = tokens + int(rng.integers(0, 30)) * ended_early
    tails = []
    for place in np.flatnonzero(~matches):
        room = max(0, budget - 2 - int(place))
        ends_after = int(rng.geometric(0.1))  # drafted tokens, the wrong one included
        tails.append((min(room, ends_after - 1), ends_after - 1 <= room))
    return make_turn(
        "".join("01"[int(each)] for each in matches),
        tails,
        watched,
        question_id=question,
        turn=turn,
        task="qa" if question % 2 else "rag",
        prompt_tokens=int(rng.integers(1, 50)),
        budget=budget,
        finish="eos" if ended_early else "length",
    )


def draw_table(seed: int, questions: int = 3, watched: bool = True) -> AcceptanceTable:
    """Two turns a question."""
    rng = np.random.default_rng(seed)
    turns = [draw_turn(rng, question, turn, watched) for question in range(questions) for turn in range(2)]
    return AcceptanceTable(turns, {"pair": "made", "gamma_max": 60})


def contents(table: AcceptanceTable) -> list[dict]:
    """Everything but the facts as plain Python values, for comparing two tables."""

    def plain(value):
        if isinstance(value, Signals):
            return {name: values.tolist() for name, values in vars(value).items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    return [{name: plain(value) for name, value in vars(turn).items()} for turn in table.turns]
