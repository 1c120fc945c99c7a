"""GGUF files: what is read of them is what their own libraries read, and a file that is none is one sentence."""

import random
import re
import struct

import gguf as library
import numpy as np
import pytest
from tiny_checkpoints import write_gguf
from transformers import AutoConfig, AutoTokenizer

from gammatune.config import Checkpoint, Gguf, PairConfig
from gammatune.errors import UserError
from gammatune.files import hash_file
from gammatune.models import gguf
from gammatune.models.gguf_header import read_header
from gammatune.models.pair import load_pair
from gammatune.models.sources import from_gguf

KINDS = [("qwen2", "gpt2"), ("qwen3", "gpt2"), ("llama", "gpt2"), ("llama", "llama")]
TEXTS = ["ab", " ab  ab\n\tba", "Grüße, 東京 🙂 <s>x</s>", "def f(x):\n    return x + 12345", "", "</s>", "a\x00b\u2581ab"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))


def described(path):
    return gguf.describe_once(path, hash_file(path))


@pytest.mark.parametrize(("kind", "vocabulary"), KINDS)
def test_settings_and_tokenizer_are_what_transformers_makes_of_the_whole_file(tmp_path, kind, vocabulary):
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, vocabulary=vocabulary)
    folder = described(path)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    config.architectures = [f"{kind.capitalize()}ForCausalLM"]
    found = AutoConfig.from_pretrained(folder).to_dict()
    assert found == config.to_dict() | {"_name_or_path": found.get("_name_or_path")} and found["vocab_size"] == 260
    tokenizer, wanted = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS:
        ids = wanted.encode(text)
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == wanted.decode(ids)
    assert tokenizer.get_vocab() == wanted.get_vocab() and len(tokenizer) == len(wanted)
    assert tokenizer.special_tokens_map == wanted.special_tokens_map and tokenizer.eos_token_id == 2
    assert tokenizer.chat_template == wanted.chat_template != None  # noqa: E711  the middle one is what is asked
    assert 259 in tokenizer.encode("ab")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
def test_tensors_lie_where_their_own_library_finds_them(tmp_path, kind):
    path = tmp_path / "model.gguf"
    kind, shape = library.GGMLQuantizationType[kind], (6, 512)
    writer = library.GGUFWriter(path, "llama")
    for name in ("a", "b"):
        values = np.random.default_rng(0).normal(size=shape).astype(np.float16 if kind.name == "F16" else np.float32)
        if kind.name not in ("F32", "F16"):
            size = library.quants.quant_shape_to_byte_shape(shape, kind)
            values = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
        writer.add_tensor(name, values, raw_dtype=None if values.dtype != np.uint8 else kind)
    writer.add_custom_alignment(64)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    tensors = read_header(path).tensors
    theirs = library.GGUFReader(path).tensors
    assert list(tensors) == ["a", "b"]
    for place, their in zip(tensors.values(), theirs, strict=True):
        assert (place.kind, place.offset, place.size) == (their.tensor_type, their.data_offset, their.n_bytes)
        assert place.shape == their.data.shape


def test_a_vocabulary_is_passed_over(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path)
    header = read_header(path)
    assert header.lengths["tokenizer.ggml.tokens"] == 260 and "tokenizer.ggml.tokens" not in header.entries
    assert header.scalars["qwen2.block_count"] == 2 and header.scalars["tokenizer.ggml.model"] == "gpt2"
    assert len(header.without_vocabulary()) < 1000


def load_refused(path) -> str:
    config = PairConfig(name="local", source="hub", target=Checkpoint(path=str(path)))
    with pytest.raises(UserError) as caught:
        load_pair(config, with_draft=False)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


FILES = {
    "holds a model of architecture gemma, so it cannot decode here: give a GGUF file of one of llama, qwen2, qwen3": {
        "architecture": "gemma"
    },
    "architecture qwen35, so": {"architecture": "qwen35"},
    "holds no tokenizer": {"vocabulary": None},
    "does not fill its own settings .first: model.layers.1.mlp.up_proj": {"kept": lambda name: "1.mlp.up" not in name},
    r"not read as a model \(an alignment of 'x'\): give a GGUF file": {"general__alignment": "x"},
    r"not read as a model \(an alignment of 3\)": {"general__alignment": 3},
    r"scales its RoPE frequencies \(qwen2.rope.scaling\)": {"qwen2__rope__scaling__factor": 4.0},
    r"scales its RoPE frequencies \(qwen2.rope.scaling\), ": {"qwen2__rope__scaling__type": "yarn"},
    r"not read as a model \(Cannot build a tokenizer .*\]\): give": {"vocabulary": "bert"},
}


@pytest.mark.parametrize("told", FILES)
def test_a_model_that_cannot_be_used_is_refused(tmp_path, told):
    path = tmp_path / "model.gguf"
    write_gguf(path, **FILES[told])
    assert re.search(told, load_refused(path))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_file_of_another_checksum_than_the_pinned_one_is_refused(tmp_path):
    """As where the hub, or another quantization's file, has something else under the name."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    pinned = Checkpoint(id="somebody/Small", gguf=Gguf(sha256="f" * 64, bytes=8, file=path.name))
    with pytest.raises(
        UserError, match=r"model.gguf is not the pinned file \(sha256 [0-9a-f]{12}\.\.\., ffffffffffff\.\.\. expected"
    ):
        from_gguf("target", "somebody/Small", path, pinned)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("gguf-*"))


def test_scaled_rope_frequencies_are_refused_and_ones_are_not(tmp_path):
    """Llama 3.1's scaling is in no key of the file, so its angles would be others than those it was trained with."""
    path = tmp_path / "model.gguf"
    write_gguf(path, more={"rope_freqs.weight": np.ones(8, np.float32)})
    load_pair(PairConfig(name="local", source="hub", target=Checkpoint(path=str(path))), with_draft=False)
    write_gguf(path, more={"rope_freqs.weight": np.array([1, 1, 8], np.float32)})
    assert "scales its RoPE frequencies (rope_freqs.weight)" in load_refused(path)


def test_a_quantization_that_nothing_unpacks_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, kept=lambda name: "1.mlp.up" not in name, more={"blk.1.ffn_up.weight": np.ones((4, 4), np.int32)})
    assert "stores blk.1.ffn_up.weight as I32, which cannot be read here: give another" in load_refused(path)
    write_gguf(path, more={"blk.1.ssm_a.weight": np.ones((4, 4), np.float32)})
    assert "has a tensor blk.1.ssm_a.weight, which no Llama or Qwen model has" in load_refused(path)


def entry(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return struct.pack("<Q", len(name)) + name.encode() + shape + struct.pack("<IQ", kind, offset)


def file(*keys: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: tuple[int, int] | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys)))) + b"".join((*keys, *tensors))


BYTES = {
    "it is empty": b"",
    "it does not begin like a GGUF file": b"version https://git-lfs.github.com/spec/v1\n",
    "it ends in the middle of its header": file(counts=(0, 2**63)),
    "version 9 of the format": file(version=9),
    "version 50331648 of the format": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "key a twice": file(*[entry("a", 4, bytes(4))] * 2),
    "a key has a list of lists": file(entry("a", 9, struct.pack("<IQ", 9, 1))),
    "13 is not a valid GGUFValueType": file(entry("a", 13, bytes(8))),
    "it ends in the middle of its header ": file(entry("a", 9, struct.pack("<IQ", 8, 2**63) + bytes(800))),
    "it ends in the middle of its  header": file(entry("a", 9, struct.pack("<IQ", 4, 2**63))),
    "it ends in  the middle of its header": file(entry("a", 8, struct.pack("<Q", 2**63))),
    "can't decode byte 0xff": file(entry("a", 8, struct.pack("<Q", 1) + b"\xff")),
    "tensor a twice": file(tensors=(tensor("a", (2,)),) * 2),
    "tensor a has 5 dimensions": file(tensors=(tensor("a", (1,) * 5),)),
    "tensor a has 0 dimensions": file(tensors=(tensor("a", ()),)),
    "999 is not a valid GGMLQuantizationType": file(tensors=(tensor("a", (32,), kind=999),)),
    "row size .31. is not a multiple of Q8_0 block": file(tensors=(tensor("a", (31,), kind=8),)),
    "it ends before its tensor a does": file(tensors=(tensor("a", (2**40, 2**20)),)),
    "it ends before its  tensor a does": file(tensors=(tensor("a", (1,), offset=2**63),)),
}


@pytest.mark.parametrize("told", BYTES)
def test_a_file_that_is_no_model_says_where_it_is_not(tmp_path, told):
    path = tmp_path / "model.gguf"
    path.write_bytes(BYTES[told])
    assert re.search(rf"is not read as a model \([^()]*{' '.join(told.split())}", load_refused(path))


def test_a_download_that_broke_off_is_refused_wherever_it_did(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    for length in [*range(0, 400, 3), *range(400, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="it (is empty|ends|does not begin)"):
            read_header(path)


def test_flipped_bits_end_in_no_other_error(tmp_path):
    path, draw = tmp_path / "model.gguf", random.Random(0)
    write_gguf(path)
    whole = path.read_bytes()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(6000)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            read_header(path)
        except ValueError as error:
            assert str(error)
