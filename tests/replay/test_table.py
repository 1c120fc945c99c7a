"""The acceptance table on disk: what goes in comes out, and what is no table is refused in one sentence."""

import hashlib
import json
import os
import random
import re
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.made_tables import (
    contents,
    draw_lists_table,
    draw_starts_table,
    draw_table,
    make_starts,
    make_turn,
    put,
    put_in_every_list,
    store_columns,
)
from shipped import make_policy

from gammatune import files
from gammatune.errors import UserError
from gammatune.replay.integrity import check_seal
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, TableError, join_tables, read_table, write_table
from gammatune.traces import UNTOLD

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "acceptance-table.md"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "acceptance.parquet"


def write_and_read(table, folder):
    write_table(table, folder / "acceptance.parquet")
    return read_table(folder / "acceptance.parquet")


def change_file(path, change, draw=draw_table):
    """Rewrite a good file as change(arrow table), its checksum as it should be."""
    write_table(draw(1), path)
    store_columns(change(pq.read_table(path)), path)


def without_ids(table):
    return replace(table, turns=[replace(turn, trace=replace(turn.trace, ids=None)) for turn in table.turns])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([draw_table, draw_starts_table, draw_lists_table]))
def test_a_table_comes_back_as_it_was(tmp_path_factory, seed, watched, draw):
    table = draw(seed, watched=watched)
    again = write_and_read(table, tmp_path_factory.mktemp("table"))
    assert contents(again) == contents(table)
    assert again.facts == table.facts
    assert (again.watched, again.complete, again.tokens) == (watched, True, sum(len(t.match) for t in table.turns))
    assert [turn.starts() for turn in again.turns] == [turn.starts() for turn in table.turns]


@pytest.mark.parametrize("draw", [draw_table, draw_starts_table])
def test_a_table_of_an_earlier_schema_names_the_right_tokens_only(path, draw):
    """Before ids were recorded: a token that the answer does not have is one that nobody knows."""
    table = draw(1)
    write_table(table, path)
    layout = json.loads(pq.read_schema(path).metadata[b"gammatune"])["layout"]
    facts = {"gammatune": json.dumps({"schema": 2, "layout": layout, **table.facts})}
    newer = ["proposed_ids"] + ["proposer", "late"] * (layout == "starts")
    store_columns(pq.read_table(path).drop_columns(newer).replace_schema_metadata(facts), path)
    again = read_table(path)
    assert all(turn.trace.ids is None for turn in again.turns)
    for old, new in zip(again.turns, table.turns, strict=True):
        known, told = old.starts(), new.starts()
        wrong = [token < 100 for token in told.ids or []]  # as the made tables number them
        assert (known.ids or array("l")).tolist() == [UNTOLD if w else t for w, t in zip(wrong, told.ids or [], strict=True)]
        assert replace(known, ids=None) == replace(told, ids=None)


def test_a_table_of_the_third_schema_is_one_drafters(path):
    table = draw_starts_table(1)
    write_table(table, path)
    facts = {"gammatune": json.dumps({"schema": 3, "layout": "starts", **table.facts})}
    store_columns(pq.read_table(path).drop_columns(["proposer", "late"]).replace_schema_metadata(facts), path)
    again = read_table(path)
    assert contents(again) == contents(table) and again.forwards_by_proposer == [0]
    assert {r.proposer for log in replay(prepare(again), make_policy("fixed"), keep_rounds=True).logs for r in log} == {0}


def test_an_imported_log_has_no_signals_no_ids_and_unknown_positions(tmp_path):
    turn = replace(make_turn("1?01?", watched=False), output_ids=np.zeros(0, np.int32))
    again = write_and_read(AcceptanceTable([turn], {"source": "log"}), tmp_path)
    assert again.turns[0].match.tolist() == [1, -1, 0, 1, -1]
    assert again.turns[0].trace.signals is None and again.turns[0].trace.continuations is None
    assert (len(again.turns[0].output_ids), again.turns[0].tokens, again.gamma_max) == (0, 5, 0)
    assert not again.watched and not again.complete


def test_one_turn_without_signals_makes_the_table_unwatched(tmp_path):
    table = AcceptanceTable([make_turn("10"), make_turn("10", watched=False, turn=1)])
    again = write_and_read(table, tmp_path)
    assert not again.watched and again.turns[0].trace.signals is not None
    assert contents(again) == contents(table)


def test_a_signal_takes_under_two_bytes_even_where_all_are_random(path):
    table = draw_table(5, questions=100)
    write_table(table, path)
    signals = 3 * sum(turn.tokens + turn.trace.steps.sum() for turn in table.turns)
    assert signals > 20_000
    assert path.stat().st_size < 2 * signals + 15_000


@pytest.mark.parametrize(("layout", "draw"), [("text", draw_table), ("starts", draw_starts_table)])
def test_columns_and_types_are_those_of_the_document(path, layout, draw):
    """The columns of all tables, then those of the layout."""
    write_table(draw(2), path)
    schema = pq.read_table(path).schema
    common, *layouts = re.split(r"^\*\*`(\w+)`\*\*", DOCUMENT.read_text(), flags=re.MULTILINE)
    text = common + dict(zip(layouts[::2], layouts[1::2], strict=True))[layout]
    rows = re.findall(r"^\| `([^|]+)` \| ([^|]+) \|", text, re.MULTILINE)
    told = {name.strip("`"): kind.strip() for names, kind in rows for name in names.split(", ")}
    assert list(told) == schema.names
    for name, kind in told.items():
        found = schema.field(name).type
        assert kind == (f"list of {found.value_type}" if pa.types.is_list(found) else str(found))


def test_signals_are_whole_numbers_of_ten_thousandths(path):
    table = AcceptanceTable([make_turn("10")])
    table.turns[0].trace.signals.entropy[:] = [0.1234, 10.5]
    write_table(table, path)
    assert pq.read_table(path)["entropy_x10000"].to_pylist() == [[1234, 105000]]


def test_facts_stand_in_the_metadata_beside_the_schema_number(path):
    write_table(AcceptanceTable([make_turn("1")], {"pair": "mine", "tasks": {"name": "qa"}}), path)
    stored = json.loads(pq.read_schema(path).metadata[b"gammatune"])
    assert stored == {"schema": 4, "layout": "text", "pair": "mine", "tasks": {"name": "qa"}}


def test_joined_parts_are_one_table_in_the_given_order():
    first, second = draw_table(1), draw_table(2)
    joined = join_tables([first, second], {"pair": "both"})
    assert contents(joined) == contents(first) + contents(second)
    assert joined.facts == {"pair": "both"}


def test_a_failing_write_leaves_the_old_file(path, monkeypatch):
    old = draw_table(1)
    write_table(old, path)
    path.with_name(f".acceptance.parquet.{os.getpid()}.part").symlink_to("/dev/full")
    monkeypatch.setattr(files, "sweep_partials", lambda *folder: None)  # which would remove it
    with pytest.raises(OSError):
        write_table(draw_table(2), path)
    assert contents(read_table(path)) == contents(old)


def test_a_missing_table_says_how_to_make_one(path):
    with pytest.raises(UserError, match=r"^There is no acceptance table at .*: make one with `gammatune record`"):
        read_table(path)


@pytest.mark.parametrize("content", [b"", b"no parquet at all", b"\x00" * 100])
def test_what_is_no_parquet_file_is_refused_and_nobody_is_told_to_delete_it(path, content):
    path.write_bytes(content)
    with pytest.raises(
        UserError, match="is no acceptance table: give one made by `gammatune record`, or the folder of a run"
    ):
        read_table(path)


def test_a_folder_and_a_device_are_no_tables(tmp_path):
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="is no regular file, so no acceptance table: give one"):
            read_table(path)


def test_a_file_cut_anywhere_is_refused(path):
    write_table(draw_table(1), path)
    whole = path.read_bytes()
    for length in range(4, len(whole), 997):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_table(path)


@pytest.mark.parametrize("draw", [draw_table, draw_starts_table])
def test_no_flipped_bit_is_read_as_other_data(path, draw):
    write_table(draw(1), path)
    whole, rng = path.read_bytes(), random.Random(5)
    for _ in range(250):
        flipped, place = bytearray(whole), rng.randrange(len(whole))
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"(damaged|is no acceptance table).*\.$"):
            read_table(path)


def test_no_flipped_bit_of_a_table_without_checksum_ends_in_another_error(path):
    """Files of schema 1: what is found out is one sentence, what is not is read as other data."""
    write_table(draw_table(1), path)
    content = pq.read_table(path).drop_columns(["proposed_ids"])
    pq.write_table(content.replace_schema_metadata({"gammatune": '{"schema": 1, "gamma_max": 60}'}), path)
    whole, rng, refused = path.read_bytes(), random.Random(6), 0
    for _ in range(250):
        flipped, place = bytearray(whole), rng.randrange(len(whole))
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            prepare(read_table(path))
        except UserError:
            refused += 1
    assert refused > 50


def test_a_table_of_the_second_schema_without_its_checksum_is_refused(path):
    write_table(draw_table(1), path)
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(TableError, match="it has no checksum"):
        read_table(path)


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(path):
    write_table(draw_table(1), path)
    content = path.read_bytes()
    (digits,) = re.findall(rb"gammatune-sha256:([0-9a-f]{64})", content)
    assert hashlib.sha256(content.replace(digits, b"0" * 64)).hexdigest() == digits.decode()


def test_names_with_control_characters_come_out_harmless(path):
    change_file(path, lambda content: put(content, "task", ["qa\x1b]0;pwned\x07\n"] * len(content)))
    assert {turn.task for turn in read_table(path).turns} == {r"qa\x1b]0;pwned\x07\n"}


def test_another_parquet_file_is_refused(path):
    pq.write_table(pa.table({"question_id": [1], "answer": ["yes"]}), path)
    with pytest.raises(UserError, match="but no acceptance table: give one made by"):
        read_table(path)


@pytest.mark.parametrize("draw", [draw_table, draw_starts_table])
def test_a_table_of_the_first_schema_is_read(path, draw):
    """It had one layout and named none."""
    facts = b'{"schema": 1, "pair": "made", "gamma_max": 60}'
    write_table(draw(1), path)
    content = pq.read_table(path).drop_columns(["proposed_ids"])
    pq.write_table(content.replace_schema_metadata({"gammatune": facts}), path)
    if draw is draw_table:
        table = read_table(path)
        assert contents(table) == contents(without_ids(draw_table(1)))
        assert (table.facts, table.forwards_per_token) == ({"pair": "made", "gamma_max": 60}, 1)
    else:
        with pytest.raises(UserError, match="damaged"):
            read_table(path)


def test_the_shipped_tables_carry_their_checksum_and_are_read():
    paths = sorted(ROOT.glob("results/reference/*/acceptance.parquet"))
    assert paths
    for path in paths:
        assert check_seal(path.read_bytes()) is True
        table = read_table(path)
        assert table.watched and table.complete and table.gamma_max == 24 and table.tokens > 500
        assert prepare(table)[0].tokens == table.turns[0].tokens


def test_a_newer_schema_is_refused(path):
    change_file(path, lambda content: content.replace_schema_metadata({"gammatune": '{"schema": 5}'}))
    with pytest.raises(UserError, match=r"newer gammatune \(schema 5, this one reads up to 4\): update gammatune"):
        read_table(path)


def test_a_table_of_nothing_is_refused(path):
    change_file(path, lambda content: content.slice(0, 0))
    with pytest.raises(UserError, match="holds no answers"):
        read_table(path)


DAMAGES = {
    "metadata that is a number": lambda c: c.replace_schema_metadata({"gammatune": "3"}),
    "metadata that is a list": lambda c: c.replace_schema_metadata({"gammatune": "[]"}),
    "a schema number that is none": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": "one"}'}),
    "a column too few": lambda c: c.drop_columns(["match"]),
    "a column too many": lambda c: c.append_column("more", pa.array([1] * len(c))),
    "another type": lambda c: c.set_column(c.schema.names.index("turn"), "turn", pa.array(["one"] * len(c))),
    **{
        f"no {name}": lambda c, name=name: put(c, name, [None, *c[name].to_pylist()[1:]])
        for name in ("question_id", "finish", "match", "tail_steps", "top1_x10000", "tail_entropy_x10000")
    },
    "a match too few": lambda c: put(c, "match", [row[:-1] for row in c["match"].to_pylist()]),
    "a match that is none": lambda c: put_in_every_list(c, "match", 7),
    "a signal too many": lambda c: put(c, "margin_x10000", [[*row, 1] for row in c["margin_x10000"].to_pylist()]),
    "a continuation too many": lambda c: put(c, "tail_steps", [[*row, 1] for row in c["tail_steps"].to_pylist()]),
    "continuations too long": lambda c: put(c, "tail_top1_x10000", [[*r, 1] for r in c["tail_top1_x10000"].to_pylist()]),
    "an id too many": lambda c: put(c, "output_ids", [[*row, 1] for row in c["output_ids"].to_pylist()]),
    "more tokens than allowed": lambda c: put(c, "budget", [1] * len(c)),
    # negative steps whose sum is right sent the replay backwards, for ever
    "steps below zero": lambda c: put(
        c,
        "tail_steps",
        [[row[0] + row[1] + 9, -9, *row[2:]] if len(row) > 1 else row for row in c["tail_steps"].to_pylist()],
    ),
    "steps beyond gamma_max": lambda c: c.replace_schema_metadata(
        {"gammatune": '{"schema": 3, "layout": "text", "gamma_max": 1}'}
    ),
    "a probability above one": lambda c: put_in_every_list(c, "top1_x10000", 10_001),
    "a probability below zero": lambda c: put_in_every_list(c, "tail_top1_x10000", -1),
    "an entropy below zero": lambda c: put_in_every_list(c, "entropy_x10000", -1),
    "a margin above one": lambda c: put_in_every_list(c, "margin_x10000", 20_000),
    "a proposed id too many": lambda c: put(c, "proposed_ids", [[*row, 1] for row in c["proposed_ids"].to_pylist()]),
    "a negative proposed id": lambda c: put_in_every_list(c, "proposed_ids", -5),
    "a negative id": lambda c: put_in_every_list(c, "output_ids", -5),
    "a negative prompt": lambda c: put(c, "prompt_tokens", [-1] * len(c)),
    "a budget of none": lambda c: put(c, "budget", [0] * len(c)),
    "a turn before the first": lambda c: put(c, "turn", [-1] * len(c)),
    "another finish": lambda c: put(c, "finish", ["maybe"] * len(c)),
    "an answer twice": lambda c: pa.concat_tables([c, c]),
    "a gamma_max that is text": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": 3, "gamma_max": "many"}'}),
    "negative forwards": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": 3, "forwards_per_token": -1}'}),
    "deep metadata": lambda c: c.replace_schema_metadata({"gammatune": "[" * 100_000}),
    "a missing value in a list": lambda c: put(c, "match", [[None, *row[1:]] for row in c["match"].to_pylist()]),
}


OTHER_DAMAGES = {
    "more right than proposed": lambda c: put_in_every_list(c, "right", 500),
    "more right than the answer has": lambda c: put_in_every_list(put_in_every_list(c, "right", 90), "proposed", 90),
    "fewer than none": lambda c: put_in_every_list(c, "right", -1),
    "an end too many": lambda c: put(c, "ended", [[*row, True] for row in c["ended"].to_pylist()]),
    "a signal too few": lambda c: put(c, "top1_x10000", [row[:-1] for row in c["top1_x10000"].to_pylist()]),
    "a proposed id too few": lambda c: put(c, "proposed_ids", [row[:-1] for row in c["proposed_ids"].to_pylist()]),
    "nothing proposed": lambda c: put(c, "proposed", [None, *c["proposed"].to_pylist()[1:]]),
    "the other layout": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": 3, "layout": "text"}'}),
    "an unknown layout": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": 3, "layout": "tree"}'}),
}


@pytest.mark.parametrize("damage", OTHER_DAMAGES)
def test_so_are_those_of_a_table_by_starts(path, damage):
    change_file(path, OTHER_DAMAGES[damage], draw_starts_table)
    with pytest.raises(UserError, match=r"acceptance\.parquet .*damaged.*: make it again with the command that made it"):
        read_table(path)


LIST_DAMAGES = {
    "a proposer too few": lambda c: put(c, "proposer", [row[:-1] for row in c["proposer"].to_pylist()]),
    "a third proposer of two": lambda c: put_in_every_list(c, "proposer", 2),
    "a proposer below zero": lambda c: put_in_every_list(c, "proposer", -1),
    "a late token too many": lambda c: put(c, "late", [[*row, True] for row in c["late"].to_pylist()]),
    "forwards of nobody": lambda c: c.replace_schema_metadata(
        {"gammatune": '{"schema": 4, "layout": "starts", "forwards_by_proposer": []}'}
    ),
    "one drafter's facts": lambda c: c.replace_schema_metadata({"gammatune": '{"schema": 4, "layout": "starts"}'}),
}


@pytest.mark.parametrize("damage", LIST_DAMAGES)
def test_so_are_those_of_a_list_of_drafters(path, damage):
    change_file(path, LIST_DAMAGES[damage], draw_lists_table)
    with pytest.raises(UserError, match=r"acceptance\.parquet .*damaged.*: make it again with the command that made it"):
        read_table(path)


def test_a_drafter_without_signals_fills_no_signal_columns(path):
    table = AcceptanceTable([make_starts("1/3 0/0+ 0/1e")], {"forwards_per_token": 0})
    write_table(table, path)
    content = pq.read_table(path)
    assert content["top1_x10000"].to_pylist() == [None] and content["more"].to_pylist() == [[False, True, False]]
    assert contents(read_table(path)) == contents(table) and read_table(path).forwards_per_token == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_lists_that_contradict_each_other_are_refused(path, damage):
    change_file(path, DAMAGES[damage])
    with pytest.raises(UserError, match=r"acceptance\.parquet .*damaged.*: make it again with the command that made it"):
        read_table(path)


def test_the_example_of_the_document_runs(path, capsys):
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    example = "results/acceptance/NAME/acceptance.parquet"
    assert example in code
    write_table(draw_table(3), path)
    exec(compile(code.replace(example, str(path)), str(DOCUMENT), "exec"), {})
    printed = r"\d+ rounds, \d\.\d\d tokens a round, \d+% of the drafted tokens accepted\n"
    assert re.fullmatch(printed, capsys.readouterr().out)
