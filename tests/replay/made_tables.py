"""Acceptance tables made by hand, or drawn from a seed, without a model."""

from dataclasses import is_dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from shipped import LENGTH_ONLY  # noqa: F401

from gammatune.replay.integrity import SEAL_METADATA, seal
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.traces import MISMATCH, SignalColumns, StartTrace, TextTrace

MATCHES = {"1": 1, "0": 0, "?": -1}


def make_signals(rng: np.random.Generator, size: int) -> SignalColumns:
    return SignalColumns(*(rng.random(size).round(4) for _ in range(3)))


def wrap(trace, **fields) -> AcceptanceTurn:
    """A trace with the rest of its answer, which fields may replace."""
    plain = {"question_id": 1, "category": "qa", "task": "qa", "turn": 0, "prompt_tokens": 10, "finish": "length"}
    plain |= {"budget": len(trace), **fields}
    return AcceptanceTurn(**plain, output_ids=np.arange(100, 100 + len(trace), dtype=np.int32), trace=trace)


def make_turn(matches: str, continuations: list[tuple[int, bool]] | None = None, watched=True, **fields) -> AcceptanceTurn:
    """One answer: matches such as "110?"; continuations: (steps, ended) per mismatch, by default four that do not end."""
    match = np.array([MATCHES[each] for each in matches], np.int8)
    wrong, rng = int((match == MISMATCH).sum()), np.random.default_rng(len(matches))
    steps, ended = zip(*(continuations or [(4, False)] * wrong), strict=True) if wrong and watched else ((), ())
    own = np.where(match == MISMATCH, 7, np.arange(100, 100 + len(match)))  # as `wrap` numbers the answer
    trace = TextTrace(
        match=match,
        signals=make_signals(rng, len(match)) if watched else None,
        steps=np.array(steps, np.int8),
        ended=np.array(ended, bool),
        continuations=make_signals(rng, sum(steps)) if watched else None,
        ids=np.concatenate([own, np.full(sum(steps), 8)]).astype(np.int32) if watched else None,
    )
    return wrap(trace, **fields)


def make_starts(starts: str, signals: SignalColumns | None = None, **fields) -> AcceptanceTurn:
    """One answer by a drafter whose blocks depend on their start: for each start "right/proposed", then "e" where the last
    proposed token ends the sequence, "+" where recording stopped first. For example "2/3 1/1e 0/0 0/4+".
    """
    counts = [each.rstrip("e+").split("/") for each in starts.split()]
    ids = []
    for place, (right, proposed) in enumerate(counts):
        ids += [100 + place + depth if depth < int(right) else 7 for depth in range(int(proposed))]  # see `wrap`
    trace = StartTrace(
        right=np.array([right for right, _ in counts], np.int16),
        proposed=np.array([proposed for _, proposed in counts], np.int16),
        ended=np.array([each.endswith("e") for each in starts.split()], bool),
        more=np.array([each.endswith("+") for each in starts.split()], bool),
        signals=signals,
        ids=np.array(ids, np.int32),
    )
    return wrap(trace, **fields)


def draw_turn(rng: np.random.Generator, question: int, turn: int, watched: bool) -> AcceptanceTurn:
    """As a recording would leave it: continuations reach as far as any block could, and some of them end the sequence."""
    tokens = int(rng.integers(1, 30))
    matches = rng.random(tokens) < rng.choice([0.2, 0.6, 0.9, 1.0])
    ended_early = rng.random() < 0.5
    budget = tokens + int(rng.integers(0, 30)) * ended_early
    continuations = []
    for place in np.flatnonzero(~matches):
        room = max(0, budget - 2 - int(place))
        ends_after = int(rng.geometric(0.1))  # drafted tokens, the wrong one included
        continuations.append((min(room, ends_after - 1), ends_after - 1 <= room))
    return make_turn(
        "".join("01"[int(each)] for each in matches),
        continuations,
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


def draw_starts_table(seed: int, questions: int = 3, watched: bool = True) -> AcceptanceTable:
    """The same for a drafter whose blocks depend on where they begin."""
    rng, turns = np.random.default_rng(seed), []
    for question in range(questions):
        tokens = int(rng.integers(1, 30))
        right = [min(int(rng.geometric(0.4)) - 1, tokens - place - 1) for place in range(tokens)]
        proposed = [each + int(rng.integers(0, 5)) for each in right]
        written = " ".join(f"{r}/{p}{rng.choice(['', 'e']) if p > r else ''}" for r, p in zip(right, proposed, strict=True))
        signals = make_signals(rng, sum(proposed)) if watched else None
        turns.append(
            make_starts(written, signals, question_id=question, prompt_tokens=int(rng.integers(1, 50)), budget=tokens)
        )
    return AcceptanceTable(turns, {"pair": "made", "gamma_max": 60, "forwards_per_token": 0})


def draw_lists_table(seed: int, questions: int = 3, watched: bool = True) -> AcceptanceTable:
    """The same for a list of two drafters, of which the second is a model."""
    table, rng = draw_starts_table(seed, questions, watched), np.random.default_rng(seed)
    for turn in table.turns:
        turn.trace.proposer = rng.integers(0, 2, turn.tokens).astype(np.int8)
        turn.trace.late = rng.random(turn.tokens) < 0.5
    return AcceptanceTable(table.turns, table.facts | {"forwards_per_token": 1, "forwards_by_proposer": [0, 1]})


def contents(table: AcceptanceTable) -> list[dict]:
    """Everything but the facts as plain Python values, for comparing two tables."""

    def plain(value):
        if is_dataclass(value):
            return {name: plain(each) for name, each in vars(value).items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    return [plain(turn) for turn in table.turns]


def store_columns(content: pa.Table, path) -> None:
    """Any columns as a file whose checksum fits."""
    with pq.ParquetWriter(path, content.schema) as writer:
        writer.write_table(content)
        writer.add_key_value_metadata(SEAL_METADATA)
    seal(path)


def put(content: pa.Table, name: str, values: list) -> pa.Table:
    """Other values in one column."""
    place = content.schema.get_field_index(name)
    return content.set_column(place, content.schema.field(name), pa.array(values, content.schema.field(name).type))


def put_in_every_list(content: pa.Table, name: str, value) -> pa.Table:
    return put(content, name, [[value] * len(row) for row in content[name].to_pylist()])
