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

from gammatune.errors import UserError, one_line
from gammatune.files import replacing
from gammatune.records import SIGNAL_DIGITS, refuse_newer
from gammatune.replay.integrity import SEAL_METADATA, Lists, check_seal, find_bad_fact, find_fault, seal
from gammatune.traces import SignalColumns, Starts, StartTrace, TextTrace, Trace

SCHEMA = 4
TABLE_FILE = "acceptance.parquet"
SIGNALS = ("top1", "entropy", "margin")
SCALE = 10**SIGNAL_DIGITS
SEALED_SCHEMA = 2  # from which a file carries its checksum
NAMING_SCHEMA = 3  # from which it can hold the ids of proposed tokens
LISTS_SCHEMA = 4  # from which it can tell several drafters apart
PROPOSED = "proposed_ids"
PARQUET = b"PAR1"
LARGEST, MOST_VALUES = 2**31, 2**29  # bytes, and numbers in all columns: two hundred times the largest table so far
UNDECODABLE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, RecursionError)
RECORD = "`gammatune record`"
REMAKE = f"make it again with the command that made it, such as {RECORD}"
GIVE_ONE = f"give one made by {RECORD}, or the folder of a run"


class TableError(UserError):
    """A file that should be an acceptance table and is none, or is damaged: a recording makes its own ones again."""


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
        return self.trace.starts(self.finish == "eos", self.output_ids)


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
        """Draft forwards that a proposed token costs at most: none without a draft model."""
        return self.facts.get("forwards_per_token", 1)

    @property
    def forwards_by_proposer(self) -> list[int]:
        """The same by who proposed the token, in the order of `Round.proposer`."""
        return self.facts.get("forwards_by_proposer", [self.forwards_per_token])

    @property
    def by_draft_model(self) -> bool:
        """Whether the drafter is a draft model alone, which an engine could be told to load."""
        return all(self.forwards_by_proposer) and not self.facts.get("rereads")

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def mean_context(self) -> float:
        """Committed tokens at a round, on average."""
        lengths = [turn.tokens for turn in self.turns]
        return float(np.average([turn.prompt_tokens + turn.tokens / 2 for turn in self.turns], weights=lengths))

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
    of_several: dict[str, pa.DataType] = field(default_factory=dict)  # lists that are missing where one drafter proposes

    def schema(self, schema: int = SCHEMA) -> pa.Schema:
        """Of a file of that schema."""
        lists = {"output_ids": pa.int32()} | ({PROPOSED: pa.int32()} if schema >= NAMING_SCHEMA else {}) | self.lists
        lists |= self.of_several if schema >= LISTS_SCHEMA else {}
        columns = [(column, pa.list_(pa.int32())) for column in self.signal_columns()]
        return pa.schema([*PLAIN.items(), *((name, pa.list_(kind)) for name, kind in lists.items()), *columns])

    def grouped_signals(self) -> dict[str, list[str]]:
        """Field of the trace -> its columns."""
        return {field: [f"{prefix}{name}_x{SCALE}" for name in SIGNALS] for field, prefix in self.signals.items()}

    def signal_columns(self) -> list[str]:
        return [name for names in self.grouped_signals().values() for name in names]


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
        {"proposer": pa.int8(), "late": pa.bool_()},
    ),
}
STORED_AS = {"tail_steps": "steps", "tail_ended": "ended", PROPOSED: "ids"}


def write_table(table: AcceptanceTable, path: Path) -> None:
    """One Parquet file, one row per turn, written atomically; facts and the file's checksum go into its metadata."""
    name, layout = next((n, each) for n, each in LAYOUTS.items() if isinstance(table.turns[0].trace, each.kind))
    rows = [turn_row(turn, layout) for turn in table.turns]
    facts = {"gammatune": json.dumps({"schema": SCHEMA, "layout": name, **table.facts})}
    schema = layout.schema().with_metadata(facts)
    content = pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)
    options = {"compression": "zstd", "compression_level": 12, "use_dictionary": ["task", "category"]}
    options["use_byte_stream_split"] = [f"{column}.list.element" for column in layout.signal_columns()]
    with replacing(path) as partial:
        # opened here, since pyarrow takes no path that is not UTF-8
        with partial.open("wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
            writer.write_table(content)
            writer.add_key_value_metadata(SEAL_METADATA)  # not in the schema, of which Parquet keeps a second copy
        seal(partial)


def turn_row(turn: AcceptanceTurn, layout: Layout) -> dict:
    row = {name: getattr(turn, name) for name in (*PLAIN, "output_ids")}
    row |= {name: getattr(turn.trace, STORED_AS.get(name, name)) for name in (PROPOSED, *layout.lists, *layout.of_several)}
    for field_name, prefix in layout.signals.items():
        columns = getattr(turn.trace, field_name)
        for name in SIGNALS:
            values = None if columns is None else np.rint(getattr(columns, name) * SCALE).astype(np.int32)
            row[f"{prefix}{name}_x{SCALE}"] = values
    return row


def read_table(path: Path) -> AcceptanceTable:
    """Raises UserError for a missing or a newer file, and TableError for one that is damaged or no table."""
    content = read_whole(path)
    sealed = check_seal(content)
    if sealed is False:
        raise TableError(f"{path} is damaged or was changed (its checksum does not fit): {REMAKE}.")
    found, facts, layout, schema = decode(content, path, bool(sealed))
    refuse_other_columns(found, layout.schema(schema), layout, path)
    try:
        columns = {name: unpack(found[name]) for name in found.schema.names}
    except ValueError as error:  # text that is no UTF-8
        raise TableError(f"{path} is damaged ({type(error).__name__}): {REMAKE}.") from error
    if not found.num_rows:
        raise TableError(f"{path} holds no answers: {REMAKE}.")
    if fault := find_fault(columns, layout.grouped_signals(), facts):
        question = columns["question_id"][fault.row]
        raise TableError(f"{path} is damaged (the lists of question {question} do not fit: {fault.what}): {REMAKE}.")
    rows = {name: column.rows() if isinstance(column, Lists) else column for name, column in columns.items()}
    turns = [read_turn({name: values[i] for name, values in rows.items()}, layout) for i in range(found.num_rows)]
    return AcceptanceTable(turns, facts)


def read_whole(path: Path) -> bytes:
    """Raises UserError where there is no such file, or none of a table's size."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file, so no acceptance table: {GIVE_ONE}.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than any acceptance table ({path.stat().st_size:,} bytes): {GIVE_ONE}.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no acceptance table at {path}: make one with {RECORD}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {GIVE_ONE}.") from error


def decode(content: bytes, path: Path, sealed: bool) -> tuple[pa.Table, dict, "Layout", int]:
    """The file's columns, its facts, their layout and schema. Raises UserError and TableError.

    A file of the first schema has no checksum, so anything may come of its bytes; Arrow's errors have many types.
    """
    if not content.startswith(PARQUET):
        raise TableError(f"{path} is no acceptance table: {GIVE_ONE}.")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if b"gammatune" not in (file.schema_arrow.metadata or {}):
            raise TableError(f"{path} is a Parquet file, but no acceptance table: {GIVE_ONE}.")
        facts = json.loads(file.schema_arrow.metadata[b"gammatune"])
        refuse_newer(schema := facts.pop("schema"), path, known=SCHEMA)
        layout = LAYOUTS[facts.pop("layout", "text")]
        if type(schema) is not int or find_bad_fact(facts):
            raise ValueError("facts of other types")
        if schema >= SEALED_SCHEMA and not sealed:
            raise TableError(f"{path} is damaged or was changed (it has no checksum): {REMAKE}.")
        if count_values(file.metadata) > MOST_VALUES:
            raise TableError(f"{path} is damaged (it claims more values than any table has): {REMAKE}.")
        return file.read(), facts, layout, schema
    except UNDECODABLE as error:
        raise TableError(f"{path} is no acceptance table or is damaged ({type(error).__name__}): {REMAKE}.") from error


def count_values(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return sum(group.column(index).num_values for group in groups for index in range(group.num_columns))


def refuse_other_columns(content: pa.Table, expected: pa.Schema, layout: Layout, path: Path) -> None:
    """Raises TableError where columns or their types differ, where a value is missing, or signals are there in part."""
    if not content.schema.equals(expected):
        raise TableError(f"{path} is damaged (other columns than an acceptance table has): {REMAKE}.")
    absent = [content[name].is_null().to_pylist() for name in layout.signal_columns()]
    whole = (*PLAIN, "output_ids", *layout.lists)
    if any(content[name].null_count for name in whole) or any(column != absent[0] for column in absent):
        raise TableError(f"{path} is damaged (values are missing): {REMAKE}.")


def unpack(column: pa.ChunkedArray) -> list | Lists:
    """A column as one Python value per row, or as lists. Raises ValueError."""
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_list(column.type):
        values = column.to_pylist()
        return [one_line(value) for value in values] if pa.types.is_string(column.type) else values
    if column.values.null_count:
        raise ValueError("a list with a missing value")
    return Lists.of(column)


def read_turn(row: dict, layout: Layout) -> AcceptanceTurn:
    fields = {STORED_AS.get(name, name): row.get(name) for name in (PROPOSED, *layout.lists, *layout.of_several)}
    for field_name, prefix in layout.signals.items():
        columns = [row[f"{prefix}{name}_x{SCALE}"] for name in SIGNALS]
        fields[field_name] = None if columns[0] is None else SignalColumns(*(column / SCALE for column in columns))
    return AcceptanceTurn(**{name: row[name] for name in PLAIN}, output_ids=row["output_ids"], trace=layout.kind(**fields))


def join_tables(parts: list[AcceptanceTable], facts: dict) -> AcceptanceTable:
    return AcceptanceTable([turn for part in parts for turn in part.turns], facts)
