"""The header of a little-endian GGUF file (ggml-org/ggml, docs/gguf.md): its keys, and where its tensors lie.

A vocabulary is three lists of 150,000 entries, of each of which gguf's own reader makes several NumPy views: half a minute.
Nothing here needs them, so they are passed over; transformers reads them once, where it makes the tokenizer.
"""

import math
import mmap
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf import GGUF_MAGIC, READER_SUPPORTED_VERSIONS, GGMLQuantizationType, GGUFValueType
from gguf.quants import quant_shape_to_byte_shape

SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
CUT = "it ends in the middle of its header"
LENGTH = struct.Struct("<Q")
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # of tensors, where no key says another
PLAIN = {
    GGMLQuantizationType.F32: 4,
    GGMLQuantizationType.F16: 2,
}  # stored as numbers of so many bytes; others as rows of bytes


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the file."""

    kind: GGMLQuantizationType
    offset: int  # bytes from the beginning of the file
    shape: tuple[int, ...]  # rows first; a row counts its numbers where they are PLAIN, else its bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * PLAIN.get(self.kind, 1)


@dataclass
class Header:
    """Of one file."""

    scalars: dict[str, object] = field(default_factory=dict)  # keys with one value: numbers, truth values and texts
    lengths: dict[str, int] = field(default_factory=dict)  # keys with a list -> its length
    entries: dict[str, bytes] = field(default_factory=dict)  # keys -> their bytes in the file; without lists of texts
    tensors: dict[str, Place] = field(default_factory=dict)

    def without_vocabulary(self) -> bytes:
        """A GGUF file of these keys only, which says how many tokens there are but not which."""
        kept = {
            name: entry for name, entry in self.entries.items() if name in self.scalars or not name.startswith("tokenizer.")
        }
        rows = f"{self.scalars['general.architecture']}.vocab_size"
        if rows not in kept:
            count = struct.pack("<II", GGUFValueType.UINT32, self.lengths["tokenizer.ggml.tokens"])
            kept[rows] = LENGTH.pack(len(rows)) + rows.encode() + count
        return struct.pack("<IIQQ", GGUF_MAGIC, max(READER_SUPPORTED_VERSIONS), 0, len(kept)) + b"".join(kept.values())


@dataclass
class Cursor:
    """Reads on from a place in a file. Raises ValueError behind its end."""

    data: mmap.mmap
    at: int = 0

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError(CUT)

    def take(self, form: str) -> tuple:
        start = self.at
        self.skip(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self.data, start)

    def number(self, form: str) -> int:
        return self.take(form)[0]

    def text(self) -> str:
        size, start = self.number("Q"), self.at
        self.skip(size)
        return self.data[start : self.at].decode()

    def skip_list(self, kind: GGUFValueType, count: int) -> None:
        if kind in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
        elif kind == GGUFValueType.STRING:
            length, at, last = LENGTH.unpack_from, self.at, len(self.data) - LENGTH.size
            for _ in range(count):  # as few steps as can be: there are hundreds of thousands
                if at > last:
                    raise ValueError(CUT)
                at += LENGTH.size + length(self.data, at)[0]
            self.skip(at - self.at)
        else:
            raise ValueError("a key has a list of lists")


def read_header(path: Path) -> Header:
    """Raises ValueError for a file that is none, OSError for one that cannot be read."""
    if not path.stat().st_size:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor, header = Cursor(data), Header()
        if data[:4] != struct.pack("<I", GGUF_MAGIC):
            raise ValueError("it does not begin like a GGUF file")
        _, version, tensors, keys = cursor.take("IIQQ")
        if version not in READER_SUPPORTED_VERSIONS:
            raise ValueError(f"version {version} of the format")
        for _ in range(keys):
            read_key(cursor, header)
        for _ in range(tensors):
            read_tensor_entry(cursor, header)
        place_tensors(header, cursor.at, len(data))
    return header


def read_key(cursor: Cursor, header: Header) -> None:
    start, name, kind = cursor.at, cursor.text(), GGUFValueType(cursor.number("I"))
    if name in header.scalars or name in header.lengths:
        raise ValueError(f"key {name} twice")
    if kind == GGUFValueType.ARRAY:
        kind, count = GGUFValueType(cursor.number("I")), cursor.number("Q")
        cursor.skip_list(kind, count)
        header.lengths[name] = count
        if kind == GGUFValueType.STRING:
            return
    else:
        header.scalars[name] = cursor.text() if kind == GGUFValueType.STRING else cursor.number(SCALARS[kind])
    header.entries[name] = cursor.data[start : cursor.at]


def read_tensor_entry(cursor: Cursor, header: Header) -> None:
    """Add a tensor, whose offset still counts from where the first one begins."""
    name, dimensions = cursor.text(), cursor.number("I")
    if name in header.tensors:
        raise ValueError(f"tensor {name} twice")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    shape = cursor.take("Q" * dimensions)[::-1]
    kind, offset = GGMLQuantizationType(cursor.number("I")), cursor.number("Q")
    header.tensors[name] = Place(kind, offset, shape if kind in PLAIN else quant_shape_to_byte_shape(shape, kind))


def place_tensors(header: Header, end: int, size: int) -> None:
    """Let offsets count from the beginning of the file. end: of the header; size: of the file, both in bytes."""
    step = header.scalars.get("general.alignment", ALIGNMENT)
    if type(step) is not int or step < 1 or step & (step - 1):
        raise ValueError(f"an alignment of {step!r}")
    first = -(-end // step) * step
    for name, place in header.tensors.items():
        header.tensors[name] = replace(place, offset=first + place.offset)
        if header.tensors[name].offset + place.size > size:
            raise ValueError(f"it ends before its tensor {name} does")
