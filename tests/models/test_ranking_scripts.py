"""Tokens counted and ranked: from text files, and from the shards that the draft was trained on."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import save_tokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, extra=["<odd>"])
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """call(script, *arguments) -> exit code, words on stdout, words on stderr."""

    def called(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(SCRIPTS))
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return called


def test_tokens_are_ranked_by_count_then_by_id(call, tokenizer, tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "one.txt").write_text("zzzzab")
    (tmp_path / "texts" / "deep" / "two.txt").write_text("bz\n")
    code, words, _ = call("rank_tokens.py", tokenizer, tmp_path / "texts", "--out", tmp_path / "ranking.npy")
    ranking = np.load(tmp_path / "ranking.npy")
    vocab = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    assert code == 0 and ranking.dtype == np.int32 and sorted(ranking) == list(range(260))
    assert ranking[:4].tolist() == [vocab["z"], vocab["b"], *sorted([vocab["a"], vocab["Ċ"]])]
    assert ranking[4:].tolist() == sorted(ranking[4:])
    assert words == f"{tmp_path / 'ranking.npy'}: 9 tokens, 4 different ones.\n"


def test_a_long_text_is_counted_whole(call, tokenizer, tmp_path):
    """More than is encoded at a time, with and without line ends."""
    (tmp_path / "long.txt").write_text("ab" * 150_000 + "\n" + "c" * 250_000)
    words = call("rank_tokens.py", tokenizer, tmp_path / "long.txt", "--out", tmp_path / "ranking.npy")[1]
    assert "550,001 tokens, 4 different ones" in words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{tokenizer}", "{here}/none.txt"], "none.txt is not there: name plain text files"),
        (["{tokenizer}", "{here}/bare"], "bare holds no files"),
        (["{here}/bare", "{here}/text.txt"], "bare holds no tokenizer that can be read"),
        (["{tokenizer}", "{here}/empty.txt"], "The texts are empty"),
        (["{tokenizer}", "{here}/image.png"], "image.png is no UTF-8 text"),
        (["{tokenizer}", "{here}/text.txt", "--out", "{here}/none/x.npy"], "Cannot read or write"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_sentence(call, tokenizer, tmp_path, arguments, sentence):
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "text.txt").write_text("abc")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    filled = [part.format(tokenizer=tokenizer, here=tmp_path) for part in arguments]
    code, out, err = call("rank_tokens.py", *filled, *([] if "--out" in filled else ["--out", tmp_path / "ranking.npy"]))
    assert (code, out) == (2, "") and sentence in err
    assert not (tmp_path / "ranking.npy").exists()


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_the_first_of_a_ranking_cover_most(counts):
    sys.path.insert(0, str(SCRIPTS))
    from draft_training.ranking import rank_tokens

    order = rank_tokens(np.array(counts)).tolist()
    assert order == sorted(range(len(counts)), key=lambda token: (-counts[token], token))


def test_training_shards_are_counted_and_held_out_ones_never(call, make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from draft_training.teacher import Sample, save_samples

    shards, target = tmp_path / "work" / "shards", make_checkpoint("target")
    shards.mkdir(parents=True)
    tops = np.zeros((3, 8), np.uint16)
    for name, ids in {
        "train-001-qa": [7, 9, 9, 5],
        "train-002-chat": [9, 5, 3, 3],
        "dev-000-qa": [200, 200, 200, 9],
    }.items():
        save_samples(shards / f"{name}.pt", [Sample(np.array(ids, np.uint16), 2, tops, tops)])
    options = ("--steps", "ranking", "--work", tmp_path / "work", "--output", tmp_path / "draft", "--target", target)
    code, words, _ = call("train_draft.py", *options)
    ranking = np.load(tmp_path / "draft" / "token_ranking.npy")
    assert code == 0 and ranking[:7].tolist() == [9, 3, 5, 7, 0, 1, 2] and len(ranking) == 259
    assert "8 tokens, 4 different ones" in words and "Of the 4 held-out tokens" in words


def test_ranking_without_shards_is_refused(call, make_checkpoint, tmp_path):
    options = (
        "--steps",
        "ranking",
        "--work",
        tmp_path,
        "--output",
        tmp_path / "draft",
        "--target",
        make_checkpoint("target"),
    )
    assert "holds no training shards: run the step teacher first" in str(call("train_draft.py", *options)[0])
