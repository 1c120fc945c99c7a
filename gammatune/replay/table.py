"""The acceptance table: everything that any policy could meet on a set of answers, recorded once (docs/acceptance-table.md).

In greedy decoding the committed text is the target's own whatever the policy does. So one walk of the draft along that text,
and one along its own continuation from each token where it is wrong, hold all that a decoding loop will ever ask of it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gammatune.errors import UserError
from gammatune.policies.base import SIGNAL_DIGITS
from gammatune.records import refuse_newer

SCHEMA = 1
MATCH, MISMATCH, UNKNOWN = 1, 0, -1
SIGNALS = ("top1", "entropy", "margin")
SCALE = 10**SIGNAL_DIGITS
RECORD = "`python -m gammatune record`"
REMAKE = f"delete it and make it again, for example with {RECORD}"


@dataclass
class Signals:
    """What the draft thought at n positions: probability of its first choice, entropy in nats, lead over the second.

    [n] each, float64, rounded to four decimals.
    """

    top1: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray


@dataclass
class AcceptanceTurn:
    """One answer of n tokens, and the draft beside it.

    budget: tokens that the answer was allowed to have (n where it ended by length). match [n]: 1 where the draft's greedy
    token is the answer's, 0 where not, -1 where nobody knows. signals: at the n positions, None where not recorded. For each
    position with match 0, in order: tail_steps, how many steps of the draft's own continuation are recorded behind its wrong
    token; tail_ended, whether the last of them (the wrong token itself for 0 steps) ends the sequence; tails, their signals,
    one turn's tails behind one another. output_ids is empty for imported logs, which hold no ids.
    """

    question_id: int
    category: str
    task: str
    turn: int
    prompt_tokens: int
    budget: int
    finish: str
    output_ids: np.ndarray
    match: np.ndarray
    signals: Signals | None
    tail_steps: np.ndarray
    tail_ended: np.ndarray
    tails: Signals | None

    @property
    def tokens(self) -> int:
        return len(self.match)


@dataclass
class AcceptanceTable:
    """All turns of a pair on a task set, in the order of the questions. facts: what was recorded, from what, with what."""

    turns: list[AcceptanceTurn]
    facts: dict = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        """Whether policies that watch the draft can be replayed."""
        return all(turn.signals is not None for turn in self.turns)

    @property
    def complete(self) -> bool:
        """Whether every match is known."""
        return all((turn.match != UNKNOWN).all() for turn in self.turns)

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def gamma_max(self) -> int:
        return self.facts.get("gamma_max", 0)


PLAIN = {"question_id": pa.int64(), "category": pa.string(), "task": pa.string(), "turn": pa.int32()}
PLAIN |= {"prompt_tokens": pa.int32(), "budget": pa.int32(), "finish": pa.string()}
LISTS = {"output_ids": pa.int32(), "match": pa.int8(), "tail_steps": pa.int8(), "tail_ended": pa.bool_()}
COLUMNS = {name: f"{name}_x{SCALE}" for name in SIGNALS}
TAIL_COLUMNS = {name: f"tail_{column}" for name, column in COLUMNS.items()}


def arrow_schema() -> pa.Schema:
    signals = [(column, pa.list_(pa.int32())) for column in (*COLUMNS.values(), *TAIL_COLUMNS.values())]
    return pa.schema([*PLAIN.items(), *((name, pa.list_(kind)) for name, kind in LISTS.items()), *signals])


def write_table(table: AcceptanceTable, path: Path) -> None:
    """One Parquet file, one row per turn, written atomically; facts go into its metadata."""
    rows = [turn_row(turn) for turn in table.turns]
    facts = {"gammatune": json.dumps({"schema": SCHEMA, **table.facts})}
    columns = {name: [row[name] for row in rows] for name in arrow_schema().names}
    content = pa.table(columns, schema=arrow_schema().with_metadata(facts))
    temporary = path.with_name(f".{path.name}.part")
    split = [f"{column}.list.element" for column in (*COLUMNS.values(), *TAIL_COLUMNS.values())]
    pq.write_table(
        content,
        temporary,
        compression="zstd",
        compression_level=12,
        use_dictionary=["task", "category"],
        use_byte_stream_split=split,
    )
    temporary.replace(path)


def turn_row(turn: AcceptanceTurn) -> dict:
    row = {name: getattr(turn, name) for name in (*PLAIN, *LISTS)}
    return row | scaled(turn.signals, COLUMNS) | scaled(turn.tails, TAIL_COLUMNS)


def scaled(signals: Signals | None, columns: dict[str, str]) -> dict:
    if signals is None:
        return dict.fromkeys(columns.values())
    return {column: np.rint(getattr(signals, name) * SCALE).astype(np.int32) for name, column in columns.items()}


def read_table(path: Path) -> AcceptanceTable:
    """Raises UserError for a missing, damaged or newer file."""
    try:
        content = pq.read_table(path)
        facts = json.loads(content.schema.metadata[b"gammatune"])
        refuse_newer(facts.pop("schema"), path, known=SCHEMA)
    except FileNotFoundError as error:
        raise UserError(f"There is no acceptance table at {path}: make one with {RECORD}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no acceptance table or is damaged ({type(error).__name__}): {REMAKE}.") from error
    refuse_other_columns(content, path)
    turns = [read_turn(row) for row in zip(*(unpack(content[name]) for name in content.schema.names), strict=True)]
    if not turns:
        raise UserError(f"{path} holds no answers: {REMAKE}.")
    for turn in turns:
        check_turn(turn, path)
    return AcceptanceTable(turns, facts)


def refuse_other_columns(content: pa.Table, path: Path) -> None:
    """Raises UserError where columns or their types differ, where a value is missing, or signals are there in part."""
    if not content.schema.equals(arrow_schema()):
        raise UserError(f"{path} is damaged (other columns than an acceptance table has): {REMAKE}.")
    signals = [content[name].is_null().to_pylist() for name in (*COLUMNS.values(), *TAIL_COLUMNS.values())]
    if any(content[name].null_count for name in (*PLAIN, *LISTS)) or any(absent != signals[0] for absent in signals):
        raise UserError(f"{path} is damaged (values are missing): {REMAKE}.")


def unpack(column: pa.ChunkedArray) -> list:
    """A column as one Python value or one NumPy array per row, None where the row has none."""
    column = column.combine_chunks()
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [flat[start:end] if known else None for start, end, known in zip(offsets[:-1], offsets[1:], valid, strict=True)]


def read_turn(row: tuple) -> AcceptanceTurn:
    plain = row[: len(PLAIN) + len(LISTS)]
    values = dict(zip((*PLAIN, *LISTS), plain, strict=True))
    signals, tails = row[len(plain) : len(plain) + len(SIGNALS)], row[len(plain) + len(SIGNALS) :]
    return AcceptanceTurn(**values, signals=unscaled(signals), tails=unscaled(tails))


def unscaled(columns: tuple) -> Signals | None:
    return None if columns[0] is None else Signals(*(column / SCALE for column in columns))


def check_turn(turn: AcceptanceTurn, path: Path) -> None:
    """Raises UserError where the lists of a turn contradict each other."""
    wrong = int((turn.match == MISMATCH).sum())
    lengths = [len(turn.output_ids) in (0, turn.tokens), 0 < turn.tokens <= turn.budget]
    lengths += [np.isin(turn.match, (MATCH, MISMATCH, UNKNOWN)).all()]
    if turn.signals is not None:
        lengths += [len(turn.tail_steps) == len(turn.tail_ended) == wrong]
        lengths += [len(getattr(turn.signals, name)) == turn.tokens for name in SIGNALS]
        lengths += [len(getattr(turn.tails, name)) == turn.tail_steps.sum() for name in SIGNALS]
    if not all(lengths):
        raise UserError(f"{path} is damaged (lists of question {turn.question_id} do not fit together): {REMAKE}.")


def join_tables(parts: list[AcceptanceTable], facts: dict) -> AcceptanceTable:
    return AcceptanceTable([turn for part in parts for turn in part.turns], facts)
