"""Tokens of text files, counted and ranked."""

import json

import numpy as np
import pytest
import rank_tokens
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def call(capsys):
    """call(*arguments) -> exit code, words on stdout, words on stderr."""
    return lambda *arguments: (rank_tokens.main([str(argument) for argument in arguments]), *capsys.readouterr())


def test_tokens_are_ranked_by_count_then_by_id(call, target, tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "one.txt").write_text("zzzzab")
    (tmp_path / "texts" / "deep" / "two.txt").write_text("bz\n")
    code, words, _ = call(target, tmp_path / "texts", "--out", tmp_path / "ranking.npy")
    ranking = np.load(tmp_path / "ranking.npy")
    vocab = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    assert code == 0 and ranking.dtype == np.int32 and sorted(ranking) == list(range(260))
    assert ranking[:4].tolist() == [vocab["z"], vocab["b"], *sorted([vocab["a"], vocab["Ċ"]])]
    assert ranking[4:].tolist() == sorted(ranking[4:])
    assert words == f"{tmp_path / 'ranking.npy'}: 9 tokens, 4 different ones.\n"


def test_the_first_ids_suffice_where_a_vocabulary_is_small(call, target, tmp_path):
    (tmp_path / "text.txt").write_text("zzb")
    whole, first = tmp_path / "whole.npy", tmp_path / "first.npy"
    assert (
        call(target, tmp_path / "text.txt", "--out", whole)[0]
        == call(target, tmp_path / "text.txt", "--most", 2, "--out", first)[0]
    )
    assert np.array_equal(np.load(first), np.load(whole)[:2])
    assert call(target, tmp_path / "text.txt", "--most", 0)[::2] == (2, "--most 0 must be 1 or more.\n")


def test_a_long_text_is_counted_whole(call, target, tmp_path):
    """More than is encoded at a time, with and without line ends."""
    (tmp_path / "long.txt").write_text("ab" * 150_000 + "\n" + "c" * 250_000)
    words = call(target, tmp_path / "long.txt", "--out", tmp_path / "ranking.npy")[1]
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
def test_what_cannot_be_ranked_is_refused_in_one_sentence(call, target, tmp_path, arguments, sentence):
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "text.txt").write_text("abc")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    filled = [part.format(tokenizer=target, here=tmp_path) for part in arguments]
    code, out, err = call(*filled, *([] if "--out" in filled else ["--out", tmp_path / "ranking.npy"]))
    assert (code, out) == (2, "") and sentence in err
    assert not (tmp_path / "ranking.npy").exists()


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_the_first_of_a_ranking_cover_most(counts):
    order = rank_tokens.rank_tokens(np.array(counts)).tolist()
    assert order == sorted(range(len(counts)), key=lambda token: (-counts[token], token))
