"""Damaged acceptance tables and price files, and what is no such file at all."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from replay.made_tables import draw_starts_table, draw_table, put, put_in_every_list, store_columns
from report.stored_study import made_bounds, make_curve

from bad_inputs.case import Case
from bad_inputs.damage import ANY_FILE, ANY_JSON, Damage, at_random, change, copy_into, drop, flip, truncate
from gammatune.files import write_json
from gammatune.replay.prices import prices_to_json
from gammatune.replay.table import write_table

PLACE = TemporaryDirectory()
TABLE = "acceptance.parquet"
SENTENCE = (
    r"(acceptance\.parquet|prices\.json|source\.json|\.csv).*(make it again|give |make one|no regular file|update gammatune)"
)
HEADLINE = ("headline", "study", "policy=fixed", "--json")


@cache
def made(draw) -> Path:
    """A folder with a small table and its prices; none may change it."""
    folder = Path(PLACE.name) / draw.__name__
    folder.mkdir()
    write_table(draw(11, questions=4), folder / TABLE)
    write_json(folder / "prices.json", prices_to_json(make_curve()))
    return folder


def spoiled(name: str, damage: Damage, draw=draw_table) -> Callable[[Path], None]:
    """prepare() of a case: a copy of the small study in which one file is damaged."""

    def prepare(folder: Path) -> None:
        damage(copy_into(made(draw), folder, "study") / name)

    return prepare


def columns(edit: Callable[[pa.Table], pa.Table]) -> Damage:
    """Other columns under a checksum that fits: what a stranger could hand over."""

    def damage(file: Path) -> None:
        store_columns(edit(pq.read_table(file)), file)

    return damage


def facts(**values) -> Damage:
    def edit(content: pa.Table) -> pa.Table:
        stored = json.loads(content.schema.metadata[b"gammatune"]) | values
        return content.replace_schema_metadata({"gammatune": json.dumps(stored)})

    return columns(edit)


def shift_steps(content: pa.Table) -> pa.Table:
    """Negative steps under the right sum, at which a replay went backwards for ever."""
    rows = content["tail_steps"].to_pylist()
    return put(content, "tail_steps", [[row[0] + row[1] + 30, -30, *row[2:]] if len(row) > 1 else row for row in rows])


TABLES = ANY_FILE | {
    "cut near its end": truncate(0.97),
    **{f"a flipped bit at {place}": flip(place, bit) for place, bit in ((0.0, 0), (0.1, 7), (0.7, 3), (0.97, 0), (1.0, 5))},
    "another Parquet file": lambda file: pq.write_table(pa.table({"question_id": [1]}), file),
    "no checksum": lambda file: pq.write_table(pq.read_table(file), file),
    "facts that are deep": columns(lambda content: content.replace_schema_metadata({"gammatune": "[" * 99_999})),
    "facts that are no UTF-8": columns(lambda content: content.replace_schema_metadata({"gammatune": b'{"a": "\xff"}'})),
    "a schema that is text": facts(schema="x"),
    "a newer schema": facts(schema=99),
    "another layout": facts(layout="tree"),
    "a layout that is a list": facts(layout=[]),
    "a gamma_max that is text": facts(gamma_max="24"),
    "negative forwards": facts(forwards_per_token=-3),
    "negative steps": columns(shift_steps),
    "negative signals": columns(lambda content: put_in_every_list(content, "entropy_x10000", -4)),
    "a negative budget": columns(lambda content: put(content, "budget", [-(2**31)] * len(content))),
    "no answers": columns(lambda content: content.slice(0, 0)),
    "answers twice": columns(lambda content: pa.concat_tables([content] * 2)),
}
PRICES = ANY_JSON | {
    "no prices": drop("prices"),
    "prices that are a list": change(prices=[]),
    "no block": change("prices", verify=[]),
    "a target that costs nothing": change("prices", verify=[{"base": 0.0}]),
    "a negative price": change("prices", "rest", base=-3.0),
    "a negative slope": change("prices", "blind", "step", slope=-0.1),
    "an endless price": change("prices", "rest", base=1e300),
    "a price that is text": change("prices", "rest", base="much"),
    "a price that is true": change("prices", "rest", base=True),
    "an unknown field": change("prices", "rest", colour=1.0),
    "provenance that is a list": change(provenance=[]),
}
STARTS = {
    "below zero": columns(lambda content: put_in_every_list(content, "right", -1)),
    "more than the answer has": columns(lambda content: put_in_every_list(content, "right", 10**4)),
    "of the other layout": facts(layout="text"),
}
STRANGE = {
    "passwd": ("/etc/passwd", r"/etc/passwd is no acceptance table: give one made by `gammatune record`"),
    "a device": ("/dev/zero", "is no regular file, so no acceptance table"),
    "nothing": ("nowhere.parquet", "There is no acceptance table at nowhere.parquet: make one with"),
    "an empty folder": (".", "There is no acceptance table at acceptance.parquet: make one with"),
    "a path with control characters": ("no\x1b[2J", "There is no acceptance table"),
    "a very long path": ("x" * 5000, "cannot be read .File name too long"),
}


def damaged_bounds(folder: Path) -> None:
    flip(0.5)(copy_into(made_bounds(), folder, "results/reference/log") / "starts.csv")


def bounds_of_another_kind(folder: Path) -> None:
    change(rate=True)(copy_into(made_bounds(), folder, "results/reference/log") / "source.json")


def named_by_a_stranger(folder: Path) -> None:
    """Names under which a terminal would be steered: they come out harmless."""
    edit = columns(lambda content: put(content, "task", ["qa\x1b]0;pwned\x07\n"] * len(content)))
    edit(copy_into(made(draw_table), folder, "study") / TABLE)


PAPER = ("paper-tables", "--out", "new")
DAMAGED, SOUND = spoiled(TABLE, flip(0.3)), spoiled(TABLE, lambda file: None)
CASES = [
    *(Case(f"table that is {name}", HEADLINE, SENTENCE, spoiled(TABLE, how)) for name, how in TABLES.items()),
    *(Case(f"prices that are {name}", HEADLINE, SENTENCE, spoiled("prices.json", how)) for name, how in PRICES.items()),
    *(Case(f"headline of {name}", ("headline", path, "--cost-ratio", "4"), says) for name, (path, says) in STRANGE.items()),
    *(
        Case(f"starts that are {name}", HEADLINE, SENTENCE, spoiled(TABLE, how, draw_starts_table))
        for name, how in STARTS.items()
    ),
    Case("sweep over a damaged table", ("sweep", "study", "policy.gammatune.eta=0.1"), SENTENCE, DAMAGED),
    Case("bounds of a damaged table", ("bounds", "study", "--out", "new"), SENTENCE, DAMAGED),
    Case("paper-tables of a damaged table", (*PAPER, "--reference", "."), SENTENCE, DAMAGED),
    Case("paper-tables of changed bounds", PAPER, r"starts\.csv is damaged or was changed", damaged_bounds),
    Case("paper-tables of other bounds", PAPER, r"source\.json is damaged .it has no usable rate", bounds_of_another_kind),
    Case(
        "prices that are no price file",
        ("headline", "study", "--prices", "/etc/passwd"),
        "passwd.*give a file made by",
        SOUND,
    ),
    Case("names of a stranger", HEADLINE[:-1], "", named_by_a_stranger, code=0),
]


def fuzz(random: Random, count: int) -> Iterator[Case]:
    """Random damage to a table or to its prices."""
    for number in range(count):
        file, draw = random.choice((TABLE, "prices.json")), random.choice((draw_table, draw_starts_table))
        damage = edit_at_random(random.random()) if file == TABLE and random.random() < 0.5 else at_random(random.random())
        words = ("headline", "study", "policy=[fixed,gammatune_plus,hf_confidence]", "--json")
        yield Case(f"{file} {number}", words, "", spoiled(file, damage, draw), code=(0, 2))


def edit_at_random(seed: float) -> Damage:
    """Other numbers in one column, under a checksum that fits."""

    def edit(content: pa.Table) -> pa.Table:
        chance = Random(seed)
        name = chance.choice([n for n in content.schema.names if not pa.types.is_string(content.schema.field(n).type)])
        kind, odd = content.schema.field(name).type, (-1, 0, 1, 2, 30, 120, 127, -128)
        if pa.types.is_list(kind) and pa.types.is_boolean(kind.value_type):
            odd = (True, False)
        values, most = content[name].to_pylist(), chance.choice((0.05, 1))
        for place, value in enumerate(values):
            if isinstance(value, list):
                values[place] = [chance.choice(odd) if chance.random() < most else each for each in value]
            elif value is not None and chance.random() < 0.3:
                values[place] = chance.choice(odd)
        return put(content, name, values)

    return columns(edit)
