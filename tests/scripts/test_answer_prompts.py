"""A target's answers to our own prompts, which rank_tokens counts."""

import json

import answer_prompts
import numpy as np
import pytest
import rank_tokens

from gammatune.training.prompts import Writer
from gammatune.training.recipe import Recipe
from gammatune.training.texts import Texts

TEXTS = {"documents": [], "german": ["Der Hund ist alt.", "Das Haus steht am Fluss."], "names": {"place": ["Rome"]}}


@pytest.fixture
def call(tmp_path, capsys):
    """call(*arguments) -> exit code, words on stderr; answers are in tmp_path / "answers"."""
    (tmp_path / "answers-texts").mkdir()
    (tmp_path / "answers-texts" / "texts.json").write_text(json.dumps(TEXTS))
    room = [f"model_pair.{role}.shape.max_position_embeddings=8192" for role in ("target", "draft")]
    pair = ["tiny-random", "runtime=eager", *room, "--out", str(tmp_path / "answers")]
    sizes = ["--prompts", "2", "--answer-tokens", "8"]
    return lambda *arguments: (answer_prompts.main([*pair, *sizes, *map(str, arguments)]), capsys.readouterr().err)


def test_answers_of_every_kind_are_counted(call, target, tmp_path):
    assert call()[0] == 0
    files = sorted((tmp_path / "answers").iterdir())
    assert [file.stem for file in files] == sorted(answer_prompts.KINDS) and all(file.read_text().strip() for file in files)
    ranking = tmp_path / "ranking.npy"
    assert rank_tokens.main([str(target), str(tmp_path / "answers"), "--out", str(ranking)]) == 0
    assert len(np.load(ranking)) == 260


def test_what_is_there_is_kept_and_what_is_missing_made_again(call, tmp_path):
    call()
    before = {file.name: file.read_text() for file in (tmp_path / "answers").iterdir()}
    (tmp_path / "answers" / "qa.txt").unlink()
    (tmp_path / "answers" / "math.txt").write_text("kept")
    assert call()[0] == 0
    after = {file.name: file.read_text() for file in (tmp_path / "answers").iterdir()}
    assert after == before | {"math.txt": "kept"}


def test_a_question_of_the_benchmark_is_not_asked(call, tmp_path):
    asked = Writer(Texts(**TEXTS), held_out=False, document=Recipe().document).write(["qa"] * 2, "rank qa")
    questions = [{"question_id": i, "category": "qa", "turns": chat.turns} for i, chat in enumerate(asked)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    assert call("--specbench", tmp_path / "question.jsonl")[0] == 0
    assert not (tmp_path / "answers" / "qa.txt").read_text().strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["--prompts", "0"], "--prompts 0 must be 1 or more"), (["nonsense=1"], "nonsense")]
)
def test_bad_calls_are_refused(call, arguments, sentence):
    code, words = call(*arguments)
    assert code == 2 and sentence in words


def test_damaged_texts_are_named(call, tmp_path):
    (tmp_path / "answers-texts" / "texts.json").write_text("{}")
    code, words = call()
    assert code == 2 and "texts.json is damaged (it has no documents): rename it and call again." in words
