"""Prompts of six kinds, the texts they draw on, and what a benchmark asks."""

import gzip
import json
import random
import re
from collections import Counter

import pytest

from gammatune.errors import UserError
from gammatune.training import prompts, texts
from gammatune.training.overlaps import Overlaps, find_questions
from gammatune.training.prompts import CHATS, TEMPLATES, Writer, mix_kinds
from gammatune.training.recipe import KINDS, Recipe
from gammatune.training.texts import Texts

SOME = Texts(
    [f"The {noun} stood by the river. Nobody knew who had built it." for noun in ("tower", "mill")], ["Der Hund."], {}
)


@pytest.mark.parametrize("found", [Texts(), SOME])
def test_every_kind_of_prompt_is_filled(found):
    """Also without texts, from our own templates alone."""
    for held_out in (False, True):
        writer = Writer(found, held_out, (200, 600))
        chats = writer.write([kind for kind in KINDS for _ in range(20)], "seed")
        assert chats == writer.write([kind for kind in KINDS for _ in range(20)], "seed")
        assert len({chat.turns[0] for chat in chats}) == len(chats) > 100
        assert all("{" not in turn for chat in chats for turn in chat.turns)
        assert {len(chat.turns) for chat in chats if chat.kind == "chat"} == {1, 2}
        assert all(len(chat.turns) == 1 for chat in chats if chat.kind != "chat")
        assert chats != writer.write([kind for kind in KINDS for _ in range(20)], "other")


def test_held_out_prompts_have_templates_of_their_own():
    train, held_out = (Writer(Texts(), part, (200, 600)) for part in (False, True))
    for lines in [*TEMPLATES.values(), *CHATS.values()]:
        mine, theirs = train.share(lines, 8), held_out.share(lines, 8)
        assert not set(mine) & set(theirs) and {*mine, *theirs} == set(lines)
    asked = [chat.turns[0] for chat in train.write(["math"] * 300, "seed")]
    shape = re.compile(r"\d+")
    theirs = {shape.sub("#", line.split("{")[0]) for line in held_out.share(TEMPLATES["problems"], 8) if line.split("{")[0]}
    assert not [text for text in asked if shape.sub("#", text).startswith(tuple(theirs))]


def test_a_problem_keeps_its_people_and_things():
    writer = Writer(Texts(), False, (200, 600))
    template = "{A} has {n1-9} {item}. {B} takes {A}'s {item}."
    told = writer.tell(template, random.Random(0), "Ada", "Ben", "eggs")
    assert re.fullmatch(r"Ada has \d eggs\. Ben takes Ada's eggs\.", told)


def test_kinds_are_mixed_by_their_shares():
    counts = Counter(mix_kinds(Recipe().shares, 100, random.Random(0)))
    assert counts == {"chat": 28, "translation": 20, "summarization": 8, "qa": 18, "math": 20, "rag": 6}
    assert len(mix_kinds(Recipe().shares, 7, random.Random(0))) == 7


def test_prompts_that_overlap_with_questions_are_found(tmp_path, monkeypatch):
    turn = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": 1, "category": "qa", "turns": [turn, "Why?"]}))
    overlaps = Overlaps(find_questions(path).questions)
    assert overlaps.found(["why"]) and overlaps.found(["Zero, " + turn.upper()]) and overlaps.found(["other", turn])
    assert not overlaps.found([turn.replace("seven", "7")]) and not overlaps.found(["Why not?"])
    monkeypatch.setenv("SPECBENCH_PATH", str(path))
    assert len(find_questions(None).questions) == 1, "Spec-Bench's own place is looked at without being asked"
    monkeypatch.delenv("SPECBENCH_PATH")
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    assert find_questions(None) is None


def test_packages_become_texts(tmp_path):
    files = {
        "usr/share/doc/anarchism/markdown/a.md.gz": "# Title\n\n"
        + "A [link](u) begins *this* long paragraph of prose. " * 90,
        "usr/share/trans/de-en": "Er ist ein sehr alter Hund. | kurz :: He is a very old dog. | short\nHund :: dog",
        "usr/share/wordnet/data.noun": "  1 licence\n"
        "1 15 n 01 Rome 0 001 @ 1 n 0000 | capital and largest city of Italy; on the Tiber\n"
        "2 06 n 02 lamp 0 standing_lamp 0 000 | a light",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    found = texts.read_texts(tmp_path)
    assert len(found.documents) == 1 and found.documents[0].startswith("A link begins this long paragraph")
    assert found.german == ["Er ist ein sehr alter Hund."]
    assert found.names["place"] == ["Rome"] and found.names["noun"] == ["standing lamp"]
    assert found.names["passage"] == ["Rome is capital and largest city of Italy."]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "is damaged (it has no documents)"),
        ('{"documents": [3], "german": [], "names": {}}', "holds something else than lists of texts"),
        ('{"documents": [], "german": [], "names": []}', "holds something else than lists of texts"),
        (None, "cannot be read"),
    ],
)
def test_texts_of_another_form_are_refused(content, sentence, tmp_path):
    path = tmp_path / "texts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        texts.find_texts(str(path))


def test_texts_that_were_made_once_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / texts.FILE).write_text('{"documents": ["A text."], "german": [], "names": {"noun": ["lamp"]}}')
    found, sha256 = texts.find_texts(None)
    assert found.documents == ["A text."] and len(sha256) == 64
    assert texts.find_texts(texts.NO_TEXTS) == (Texts(), None)


def test_a_document_is_cut_at_a_sentence():
    assert prompts.cut_at_sentence("One. Two. Three is long.", 12) == "One. Two."
    assert prompts.cut_at_sentence("Short.", 12) == "Short."
