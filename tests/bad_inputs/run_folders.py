"""Damaged run folders, and those of a stranger: shown, reported, exported, made tables of, and gone on with by `run`."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hydra.core.global_hydra import GlobalHydra
from report.stored import Recipe, store_run

from bad_inputs.case import SMALL, Case, write_questions
from bad_inputs.damage import ANY_FILE, ANY_JSON, Damage, at_random, change, copy_into, drop, flip, read, replace_by
from gammatune.cli import main
from gammatune.files import write_json

PLACE = TemporaryDirectory()
STORED = Recipe(arms=("ar", "fixed-2"), tasks=("qa",), questions=2, repetitions=1, tokens=(6, 9))
CELL = "cell-fixed-2"
SHOW, EXPORT = ("show", "folder"), ("export", "folder", "--out", "new")
REPORT, PAPER = ("report", "folder", "--out", "new"), ("paper-tables", "--runs", ".", "--out", "new")
AGAIN = (*SMALL, "results=results")
ADVICE = r"(run (the same|its) command again|the same command goes on|update gammatune|folder of one run)"


@cache
def stored() -> Path:
    """A small run; none may change it."""
    return store_run(Path(PLACE.name) / "stored", STORED)


@cache
def finished() -> Path:
    """What SMALL leaves: the folder of results. None may change it."""
    place = Path(PLACE.name) / "real"
    place.mkdir()
    write_questions(place)
    words, sys.argv = sys.argv, ["gammatune"]
    GlobalHydra.instance().clear()
    with contextlib.chdir(place), contextlib.suppress(SystemExit):
        main(list(AGAIN))
    sys.argv = words
    return place / "results"


def spoiled(name: str, damage: Damage) -> Callable[[Path], None]:
    """prepare() of a case: a copy of the small run in which one file is damaged."""

    def prepare(folder: Path) -> None:
        damage(copy_into(stored(), folder, "folder") / name)

    return prepare


def spoiled_finished(name: str, damage: Damage) -> Callable[[Path], None]:
    """The same of what SMALL leaves; name: a pattern in the run's folder, of which the first match is taken."""

    def prepare(folder: Path) -> None:
        write_questions(folder)
        (run,) = copy_into(finished(), folder, "results").iterdir()
        damage(sorted(run.glob(name))[0])

    return prepare


def edit_log(edit: Callable[[list[dict]], None]) -> Damage:
    """Other turns, for which done.json vouches."""

    def damage(file: Path) -> None:
        turns = [json.loads(line) for line in file.read_text().splitlines()]
        edit(turns)
        vouch(file, "".join(json.dumps(turn) + "\n" for turn in turns))

    return damage


def vouch(file: Path, log: str) -> None:
    file.write_text(log)
    change(sha256=hashlib.sha256(log.encode()).hexdigest())(file.with_name("done.json"))


def first_round(**values) -> Damage:
    def edit(turns: list[dict]) -> None:
        for name, value in values.items():
            turns[0]["rounds"][name][0] = value

    return edit_log(edit)


def first_arm(**values) -> Damage:
    def damage(file: Path) -> None:
        content = read(file)
        content["arms"][1].update(values)
        write_json(file, content)

    return damage


def unfinish(then: Damage) -> Damage:
    """Damage the log of a cell that is not done."""

    def damage(file: Path) -> None:
        file.with_name("done.json").unlink()
        then(file)

    return damage


def break_second_line(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1].replace(b"}", b"", 1), *lines[2:]]))


def store_table_of_nothing(folder: Path) -> None:
    (copy_into(stored(), folder, "folder") / "acceptance.parquet").write_bytes(b"PAR1" + bytes(99))


#: of done.json and machine.jsonl: as if they were not there
ABSENT = ("a folder", "a device")
LOGS = {
    "a million accepted": first_round(accepted=10**6),
    "accepted below zero": first_round(accepted=-1, emitted=0),
    "true for a number": first_round(planned=True),
    "another stop": first_round(stop="tired"),
    "time that runs backwards": first_round(verify_ms=-4.0),
    "no time": first_round(draft_ms=float("nan")),
    "another context": first_round(context=0),
    "a state that is text": first_round(state={"mean": "x"}),
    "an id that is text": edit_log(lambda turns: turns[0]["output_ids"].__setitem__(0, "x")),
    "a turn of another kind": edit_log(lambda turns: turns[0].update(turn="first")),
    "columns of other lengths": edit_log(lambda turns: turns[0]["rounds"]["stop"].pop()),
    "an unknown field": edit_log(lambda turns: turns[0].update(colour="red")),
    "a newer schema": edit_log(lambda turns: turns[0].update(schema=99)),
    "a schema that is a list": edit_log(lambda turns: turns[0].update(schema=[2])),
    "brackets": lambda file: vouch(file, "[" * 100_000 + "\n"),
    "digits": lambda file: vouch(file, '{"schema": ' + "9" * 5000 + "}\n"),
    "no answers": lambda file: vouch(file, ""),
}
RUNS = {
    "no arms": change(arms=[]),
    "arms that are none": change(arms=[7]),
    "arms that are an object": change(arms={}),
    "no pair": drop("pair"),
    "a pair that is a list": change(pair=[]),
    "tasks that are text": change(tasks="demo"),
    "settings that are a list": first_arm(settings=[1]),
    "a policy that is a number": first_arm(policy=5),
    "a gamma that is text": first_arm(gamma="5"),
    "a negative gamma": first_arm(gamma=-5),
    "one label twice": first_arm(label="ar"),
    "a label that leads out": first_arm(label="../../evil"),
    "an absolute label": first_arm(label="/tmp/evil"),
    "a label with an escape": first_arm(label="\x1b]0;pwned\x07"),
    "a label with a newline": first_arm(label="a\nb"),
    "a label that is too long": first_arm(label="x" * 5000),
    "a cell that leads out": first_arm(cell="../elsewhere"),
    "an absolute cell": first_arm(cell="/etc"),
}
STRANGE = {
    "no run": ("nowhere", "holds no run.json, so it is no run: give the folder of one run"),
    "another folder": ("/etc", "holds no run.json, so it is no run"),
    "a file": ("/etc/passwd", "holds no run.json, so it is no run"),
    "control characters": ("no\x1b[2J", "holds no run.json, so it is no run"),
    "a very long path": ("x" * 5000, "File name too long|holds no run.json"),
}


def each(
    what: str, words: tuple, name: str, damages: dict[str, Damage], says: str = "", spoiler=spoiled, code: int = 2
) -> list[Case]:
    """One case per kind of damage to one file of a run; by default, the sentence names it and says how to go on."""
    told = says or rf"{Path(name).name.replace('.', '[.]')}.*{ADVICE}"
    return [Case(f"{what} that is {kind}", words, told, spoiler(name, how), code) for kind, how in damages.items()]


def only(damages: dict[str, Damage], *kinds: str) -> dict[str, Damage]:
    return {kind: damages[kind] for kind in kinds}


def unchanged(file: Path) -> None:
    """A sound run."""


def steer_the_terminal(file: Path) -> None:
    write_json(file, {"pieces": dict.fromkeys(read(file)["pieces"], "\x1b]0;pwned\x07\x1b[2J")})


def write_samples(run: Path) -> None:
    torn = b'{"time": 1}\n\0\xff\n[]\n{"time": 1, "load": -5}\n{"ti{"time": 2, "load": "x"}\n{"time'
    (run / "machine.jsonl").write_bytes(torn)


DONE, ORIGIN, LOG = (f"{CELL}/{name}" for name in ("done.json", "provenance.json", "turns.jsonl"))
PRESENT = {kind: how for kind, how in ANY_JSON.items() if kind not in ABSENT}
REMADE = only(ANY_JSON, "half", "100,000 brackets", "a schema that is a list")  # which a run makes again
PIECES = {
    "pieces that are a list": change(pieces=[]),
    "pieces that are numbers": change(pieces={"1": 1}),
    "pieces of odd ids": change(pieces={"one": "a"}),
    "questions that are a list": change(questions=[]),
    "questions of odd ids": change(questions={"one": ["a"]}),
    "questions of numbers": change(questions={"1": [1]}),
}
ORIGINS = {"without a device": drop("device"), "of another time": change(time="now"), "of text": change(sessions="two")}

CASES = [
    *each("run.json", SHOW, "run.json", PRESENT | RUNS),
    *each("run.json", SHOW, "run.json", only(ANY_JSON, *ABSENT), "holds no run.json, so it is no run"),
    *each("done.json", SHOW, DONE, PRESENT | {"of another status": change(status=["ok"])}),
    *each("provenance.json", EXPORT, ORIGIN, ANY_JSON | ORIGINS),
    *each("pieces.json", SHOW, "pieces.json", ANY_JSON | PIECES),
    *each("turns.jsonl", SHOW, LOG, ANY_FILE),
    *each("a log", REPORT, LOG, LOGS),
    *(Case(f"a run that is {kind}", ("show", path), says) for kind, (path, says) in STRANGE.items()),
    *(Case(f"done.json that is {kind}", SHOW, "", spoiled(DONE, ANY_JSON[kind]), code=0) for kind in ABSENT),
    Case("pieces with escapes", SHOW, "", spoiled("pieces.json", steer_the_terminal), code=0),
    Case("a pair with escapes", EXPORT, "", spoiled("run.json", change(pair="\x1b]0;pwned\x07\n")), code=0),
    Case("machine samples that are none", REPORT, "", spoiled(".", write_samples), code=0),
    Case("a table of nothing", REPORT, "acceptance.parquet .*make it again", store_table_of_nothing),
    Case("paper-tables of a damaged run", PAPER, rf"done\.json .*{ADVICE}", spoiled(DONE, flip(0.5))),
    Case("another arm", (*SHOW, "--arm", "../x\x1b[2J"), "has no finished arm", spoiled("run.json", unchanged)),
    Case("another question", (*SHOW, "--question", "9" * 30), "is not in this run", spoiled("run.json", unchanged)),
    *each("going on with done.json", AGAIN, "fixed*/done.json", only(ANY_JSON, "a folder"), "again", spoiled_finished),
    *each("going on with run.json", AGAIN, "run.json", REMADE, code=0, spoiler=spoiled_finished),
    *each("going on with done.json", AGAIN, "fixed*/done.json", REMADE, code=0, spoiler=spoiled_finished),
    *each("going on with config.json", AGAIN, "fixed*/config.json", REMADE, code=0, spoiler=spoiled_finished),
    *each("going on with provenance.json", AGAIN, "fixed*/provenance.json", REMADE, code=0, spoiler=spoiled_finished),
    *each("going on with a log", AGAIN, "fixed*/turns.jsonl", ANY_FILE, "turns.jsonl.*again", spoiled_finished),
    *each(
        "going on with a log",
        AGAIN,
        "fixed*/turns.jsonl",
        {"broken in its middle": unfinish(break_second_line)},
        code=0,
        spoiler=spoiled_finished,
    ),
    Case("going on with a damaged table", AGAIN, "", spoiled_finished("acceptance.parquet", flip(0.5)), code=0),
    Case("going on with a table that is none", AGAIN, "", spoiled_finished("acceptance.parquet", replace_by(b"")), code=0),
]


def fuzz(random: Random, count: int) -> Iterator[Case]:
    """Random damage to one file of a run; every second time, JSON and logs get a checksum that fits."""
    for number in range(count):
        name = random.choice(
            ("run.json", "pieces.json", *(f"{CELL}/{file}" for file in ("done.json", "provenance.json", "turns.jsonl")))
        )
        damage = at_random(random.random())
        if name.endswith("turns.jsonl") and random.random() < 0.7:
            damage = edit_at_random(random.random())
        words = random.choice((SHOW, EXPORT, SHOW, EXPORT, REPORT))
        yield Case(f"{words[0]} of a damaged {name} {number}", words, "", spoiled(name, damage), code=(0, 2))


def edit_at_random(seed: float) -> Damage:
    def damage(file: Path) -> None:
        mutated = file.with_name("mutated.json")
        mutated.write_text(json.dumps({"turns": [json.loads(line) for line in file.read_text().splitlines()]}))
        at_random(seed, spoils=False)(mutated)
        turns = read(mutated).get("turns")
        vouch(file, "".join(json.dumps(turn) + "\n" for turn in turns) if isinstance(turns, list) else "7\n")

    return damage
