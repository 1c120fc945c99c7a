"""Ways in which a disk or a stranger can spoil a file, for the modules of cases beside this one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from gammatune.files import write_json

Damage = Callable[[Path], None]


def replace_by(content: bytes) -> Damage:
    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def truncate(share: float) -> Damage:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return damage


def flip(place: float, bit: int = 1) -> Damage:
    """place: from 0 to 1."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
        file.write_bytes(content)

    return damage


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_device(file: Path) -> None:
    """A file that never ends."""
    file.unlink()
    file.symlink_to("/dev/zero")


#: what no file of ours survives
ANY_FILE = {
    "empty": replace_by(b""),
    "half": truncate(0.5),
    "zeros": replace_by(bytes(4000)),
    "random bytes": replace_by(Random(1).randbytes(4000)),
    "a flipped bit": flip(0.4),
    "a folder": make_folder,
    "a device": make_device,
}
ANY_JSON = ANY_FILE | {
    "another object": replace_by(b"{}"),
    "a list": replace_by(b"[]"),
    "a number": replace_by(b"7"),
    "no UTF-8": replace_by(b'{"schema": 2, "a": "\xff"}'),
    "100,000 brackets": replace_by(b"[" * 100_000),
    "an object in deep lists": replace_by(b'{"schema": 1, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a number of 5,000 digits": replace_by(b'{"schema": 1, "a": ' + b"9" * 5000 + b"}"),
    "a schema that is text": replace_by(b'{"schema": "x"}'),
    "a schema that is a list": replace_by(b'{"schema": [2]}'),
    "a schema below 1": replace_by(b'{"schema": -1}'),
    "a schema that is true": replace_by(b'{"schema": true}'),
    "no checksum": lambda file: file.write_text(json.dumps(read(file))),
    "a newer schema": lambda file: change(schema=99)(file),
}


def read(file: Path) -> dict:
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}


def change(*path, **values) -> Damage:
    """Set values of the object at `path`; the checksum is as it should be."""

    def damage(file: Path) -> None:
        content = read(file)
        place = content
        for key in path:
            place = place[key]
        place.update(values)
        write_json(file, content)

    return damage


def drop(key: str) -> Damage:
    def damage(file: Path) -> None:
        content = read(file)
        del content[key]
        write_json(file, content)

    return damage


ODD = (
    None,
    True,
    -1,
    2**70,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 999,
    "\x1b]0;pwned\x07\n",
    "../../x",
    [],
    {},
    [[]],
    {"a": 1},
)


def mutate_json(file: Path, random: Random) -> None:
    """Another value somewhere, or a key or an item less; the checksum is as it should be."""
    content = read(file)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            break
        key = random.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and random.random() < 0.8:
            place = place[key]
            continue
        if random.random() < 0.2:
            del place[key]
        else:
            place[key] = random.choice(ODD)
        break
    write_json(file, content)


def spoil(file: Path, random: Random) -> None:
    """Flipped bits, a cut, or bytes of another kind, at random."""
    content = bytearray(file.read_bytes())
    kind = random.randrange(4)
    if kind == 0 and content:
        for _ in range(random.choice((1, 1, 1, 2, 8, 64))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif kind == 1:
        del content[random.randrange(len(content) + 1) :]
    elif kind == 2:
        start = random.randrange(len(content) + 1)
        content[start : start + random.randrange(200)] = random.randbytes(random.randrange(200))
    else:
        start = random.randrange(len(content) + 1)
        del content[start : start + random.randrange(1, 100)]
    file.write_bytes(content)


def at_random(seed: float, spoils: bool = True) -> Damage:
    """spoils: whether bytes may be damaged too, not only the values of a JSON file."""

    def damage(file: Path) -> None:
        chance = Random(seed)
        if file.suffix == ".json" and (not spoils or chance.random() < 0.7):
            mutate_json(file, chance)
        else:
            spoil(file, chance)

    return damage


def copy_into(made: Path, folder: Path, name: str) -> Path:
    return Path(shutil.copytree(made, folder / name))
