"""The acceptance table: everything that any policy could meet on a set of answers, recorded once (docs/acceptance-table.md).

In greedy decoding the committed text is the target's own whatever the policy does. So the drafter's trace along that text,
and one along its own continuation from each token where it is wrong, hold all that a decoding loop will ever ask of it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gammatune.errors import UserError
from gammatune.records import SIGNAL_DIGITS, refuse_newer
from gammatune.traces import SignalColumns, Starts, StartTrace, TextTrace, Trace

SCHEMA = 2
TABLE_FILE = "acceptance.parquet"
SIGNALS = ("top1", "entropy", "margin")
SCALE = 10**SIGNAL_DIGITS
RECORD = "`gammatune record`"
REMAKE = f"delete it and make it again, for example with {RECORD}"


@dataclass
class AcceptanceTurn:
    """One answer of n tokens, and what the drafter would propose at each of its positions."""

    question_id: int
    category: str
    task: str
    turn: int  # which of the question's prompts, from 0
    prompt_tokens: int
    budget: int  # tokens that the answer was allowed to have; n where it ended by length
    finish: str  # "eos" or "length"
    output_ids: np.ndarray  # [n], int32; empty for imported logs, which hold no ids
    trace: Trace

    @property
    def tokens(self) -> int:
        return len(self.trace)

    @property
    def match(self) -> np.ndarray:
        """[n]: whether the drafter's first token at each position is the answer's (MATCH, MISMATCH, UNKNOWN)."""
        return self.trace.match

    def starts(self) -> Starts:
        """The blocks that can begin in this answer, by their start."""
        return self.trace.starts(self.finish == "eos")


@dataclass
class AcceptanceTable:
    """All turns of a pair on a task set, in the order of the questions. facts: what was recorded, from what, with what."""

    turns: list[AcceptanceTurn]
    facts: dict = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        """Whether policies that watch the draft can be replayed."""
        return all(turn.trace.watched for turn in self.turns)

    @property
    def complete(self) -> bool:
        """Whether every match is known."""
        return self.unknown == 0

    @property
    def unknown(self) -> int:
        """Positions of which nobody knows whether the drafter's token was right."""
        return sum(turn.trace.unknown for turn in self.turns)

    @property
    def forwards_per_token(self) -> int:
        """Draft forwards that a proposed token costs: none for a drafter that is no model."""
        return self.facts.get("forwards_per_token", 1)

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def gamma_max(self) -> int:
        return self.facts.get("gamma_max", 0)


PLAIN = {"question_id": pa.int64(), "category": pa.string(), "task": pa.string(), "turn": pa.int32()}
PLAIN |= {"prompt_tokens": pa.int32(), "budget": pa.int32(), "finish": pa.string()}


@dataclass(frozen=True)
class Layout:
    """How one kind of trace lies in the file: its plain lists, and its groups of signal columns."""

    kind: type
    lists: dict[str, pa.DataType]
    signals: dict[str, str]  # field of the trace -> prefix of its three columns

    def schema(self) -> pa.Schema:
        lists = {"output_ids": pa.int32()} | self.lists
        columns = [(column, pa.list_(pa.int32())) for column in self.signal_columns()]
        return pa.schema([*PLAIN.items(), *((name, pa.list_(kind)) for name, kind in lists.items()), *columns])

    def signal_columns(self) -> list[str]:
        return [f"{prefix}{name}_x{SCALE}" for prefix in self.signals.values() for name in SIGNALS]


# Names as in schema 1, which had the first layout only
LAYOUTS = {
    "text": Layout(
        TextTrace,
        {"match": pa.int8(), "tail_steps": pa.int8(), "tail_ended": pa.bool_()},
        {"signals": "", "continuations": "tail_"},
    ),
    "starts": Layout(
        StartTrace,
        {"right": pa.int16(), "proposed": pa.int16(), "ended": pa.bool_(), "more": pa.bool_()},
        {"signals": ""},
    ),
}
STORED_AS = {"tail_steps": "steps", "tail_ended": "ended"}


def write_table(table: AcceptanceTable, path: Path) -> None:
    """One Parquet file, one row per turn, written atomically; facts go into its metadata."""
    name, layout = next((n, each) for n, each in LAYOUTS.items() if isinstance(table.turns[0].trace, each.kind))
    rows = [turn_row(turn, layout) for turn in table.turns]
    facts = {"gammatune": json.dumps({"schema": SCHEMA, "layout": name, **table.facts})}
    schema = layout.schema()
    content = pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema.with_metadata(facts))
    temporary = path.with_name(f".{path.name}.part")
    pq.write_table(
        content,
        temporary,
        compression="zstd",
        compression_level=12,
        use_dictionary=["task", "category"],
        use_byte_stream_split=[f"{column}.list.element" for column in layout.signal_columns()],
    )
    temporary.replace(path)


def turn_row(turn: AcceptanceTurn, layout: Layout) -> dict:
    row = {name: getattr(turn, name) for name in (*PLAIN, "output_ids")}
    row |= {name: getattr(turn.trace, STORED_AS.get(name, name)) for name in layout.lists}
    for field_name, prefix in layout.signals.items():
        columns = getattr(turn.trace, field_name)
        for name in SIGNALS:
            values = None if columns is None else np.rint(getattr(columns, name) * SCALE).astype(np.int32)
            row[f"{prefix}{name}_x{SCALE}"] = values
    return row


def read_table(path: Path) -> AcceptanceTable:
    """Raises UserError for a missing, damaged or newer file."""
    try:
        content = pq.read_table(path)
        facts = json.loads(content.schema.metadata[b"gammatune"])
        refuse_newer(facts.pop("schema"), path, known=SCHEMA)
        layout = LAYOUTS[facts.pop("layout", "text")]
    except FileNotFoundError as error:
        raise UserError(f"There is no acceptance table at {path}: make one with {RECORD}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no acceptance table or is damaged ({type(error).__name__}): {REMAKE}.") from error
    refuse_other_columns(content, layout, path)
    columns = {name: unpack(content[name]) for name in content.schema.names}
    turns = [read_turn({name: values[i] for name, values in columns.items()}, layout) for i in range(content.num_rows)]
    if not turns:
        raise UserError(f"{path} holds no answers: {REMAKE}.")
    for turn in turns:
        if not consistent(turn):
            raise UserError(f"{path} is damaged (lists of question {turn.question_id} do not fit together): {REMAKE}.")
    return AcceptanceTable(turns, facts)


def refuse_other_columns(content: pa.Table, layout: Layout, path: Path) -> None:
    """Raises UserError where columns or their types differ, where a value is missing, or signals are there in part."""
    if not content.schema.equals(layout.schema()):
        raise UserError(f"{path} is damaged (other columns than an acceptance table has): {REMAKE}.")
    absent = [content[name].is_null().to_pylist() for name in layout.signal_columns()]
    whole = (*PLAIN, "output_ids", *layout.lists)
    if any(content[name].null_count for name in whole) or any(column != absent[0] for column in absent):
        raise UserError(f"{path} is damaged (values are missing): {REMAKE}.")


def unpack(column: pa.ChunkedArray) -> list:
    """A column as one Python value or one NumPy array per row, None where the row has none."""
    column = column.combine_chunks()
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [flat[start:end] if known else None for start, end, known in zip(offsets[:-1], offsets[1:], valid, strict=True)]


def read_turn(row: dict, layout: Layout) -> AcceptanceTurn:
    fields = {STORED_AS.get(name, name): row[name] for name in layout.lists}
    for field_name, prefix in layout.signals.items():
        columns = [row[f"{prefix}{name}_x{SCALE}"] for name in SIGNALS]
        fields[field_name] = None if columns[0] is None else SignalColumns(*(column / SCALE for column in columns))
    return AcceptanceTurn(**{name: row[name] for name in PLAIN}, output_ids=row["output_ids"], trace=layout.kind(**fields))


def consistent(turn: AcceptanceTurn) -> bool:
    """Whether the lists of a turn fit together."""
    return len(turn.output_ids) in (0, turn.tokens) and 0 < turn.tokens <= turn.budget and turn.trace.consistent()


def join_tables(parts: list[AcceptanceTable], facts: dict) -> AcceptanceTable:
    return AcceptanceTable([turn for part in parts for turn in part.turns], facts)
