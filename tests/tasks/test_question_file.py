import hashlib
import json

import pytest

from gammatune.config import TasksConfig
from gammatune.errors import UserError
from gammatune.machine import cache_dir
from gammatune.tasks import questions
from gammatune.tasks.questions import SPECBENCH_SHA256, SPECBENCH_URL, load_questions

CONTENT = json.dumps({"question_id": 81, "category": "qa", "turns": ["Who?"]}).encode() + b"\n"
CONFIG = TasksConfig(name="specbench", source="specbench")


@pytest.fixture
def pin_content(monkeypatch):
    """Lets the short CONTENT stand for Spec-Bench's file."""
    monkeypatch.setattr(questions, "SPECBENCH_SHA256", hashlib.sha256(CONTENT).hexdigest())


def message(config, url=SPECBENCH_URL):
    with pytest.raises(UserError) as caught:
        load_questions(config, url)
    return str(caught.value)


def test_the_real_file_is_fetched_once_and_then_read_from_the_cache(real_file, serve):
    address = serve(real_file.read_bytes())
    assert len(load_questions(CONFIG, address).questions) == 480
    assert len(load_questions(CONFIG, "http://127.0.0.1:9/none").questions) == 480


def test_a_download_leaves_only_the_file_in_the_cache(pin_content, serve, own_cache):
    load_questions(CONFIG, serve(CONTENT))
    assert [p.relative_to(own_cache).as_posix() for p in own_cache.rglob("*") if p.is_file()] == ["specbench/question.jsonl"]


@pytest.mark.parametrize("checksum", ["pinned", None])
def test_a_wrong_download_is_refused_and_not_kept(serve, own_cache, checksum):
    address = serve(CONTENT)
    text = message(TasksConfig(name="s", source="specbench", checksum=checksum), address)
    assert hashlib.sha256(CONTENT).hexdigest() in text and SPECBENCH_SHA256 in text and "SPECBENCH_PATH" in text
    assert not [p for p in own_cache.rglob("*") if p.is_file()]


def test_without_file_and_network_the_sentence_says_how_to_get_the_file():
    text = message(CONFIG, "http://127.0.0.1:9/question.jsonl")
    assert all(word in text for word in ("could not be downloaded", SPECBENCH_URL, "tasks.path", "SPECBENCH_PATH"))


def test_a_missing_page_is_reported(serve):
    assert "404" in message(CONFIG, serve(b"gone", status=404))


def test_a_cut_transfer_is_reported(pin_content, serve):
    assert "could not be downloaded" in message(CONFIG, serve(CONTENT, promised=len(CONTENT) + 10))


def test_a_damaged_cache_is_refused_with_its_remedy(pin_content, serve, own_cache):
    load_questions(CONFIG, serve(CONTENT))
    (own_cache / "specbench" / "question.jsonl").write_bytes(CONTENT[:20])
    assert "delete it so that it is fetched again" in message(CONFIG)


def test_a_local_file_with_another_checksum_is_refused_with_both_sums(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(CONTENT)
    text = message(TasksConfig(name="s", source="specbench", path=str(path)))
    found = hashlib.sha256(CONTENT).hexdigest()
    assert all(word in text for word in (str(path), found, SPECBENCH_SHA256, "tasks.checksum=null"))


def test_a_user_can_pin_another_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(CONTENT)
    fields = {"name": "s", "source": "specbench", "path": str(path)}
    assert load_questions(TasksConfig(**fields, checksum=hashlib.sha256(CONTENT).hexdigest())).questions[0].turns == ["Who?"]
    assert "0" * 64 in message(TasksConfig(**fields, checksum="0" * 64))


def test_the_demo_set_obeys_a_checksum_too():
    assert "tasks.checksum=pinned" in message(TasksConfig(name="demo", checksum="0" * 64))


@pytest.mark.parametrize("setting", ["tasks.path", "SPECBENCH_PATH"])
def test_a_missing_path_names_the_setting_that_gave_it(tmp_path, monkeypatch, setting):
    missing = str(tmp_path / "none.jsonl")
    monkeypatch.setenv("SPECBENCH_PATH", missing)
    text = message(TasksConfig(name="s", source="specbench", path=missing if setting == "tasks.path" else None))
    assert f"{missing} cannot be read (No such file or directory)" in text and f"point {setting} at" in text


@pytest.mark.parametrize(("path", "words"), [("/tmp", "Is a directory"), ("/dev/zero", "No regular file")])
def test_what_is_no_file_is_refused(path, words):
    assert words in message(TasksConfig(name="s", source="specbench", path=path))


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("GAMMATUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "gammatune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "gammatune" and cache_dir().is_dir()


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set GAMMATUNE_CACHE to a folder"):
        cache_dir()


def test_a_download_that_cannot_be_stored_is_refused(pin_content, serve, own_cache):
    own_cache.mkdir()
    (own_cache / "specbench").write_text("")
    assert "set GAMMATUNE_CACHE" in message(CONFIG, serve(CONTENT))
