"""Known answers are confirmed in few forwards where they are right, and change nothing where they are wrong."""

import json

import pytest
from table_model import draw_prompt, own_answer, table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import generate_speculative
from gammatune.drafters.known import KnownText, read_known
from gammatune.errors import UserError
from gammatune.policies.fixed import Fixed
from gammatune.policies.session import PolicySession

BUDGET = 60
ENGINES = {"endless": table_engine(ends=()), "ending": table_engine()}


def confirm(engine, prompt: list[int], known: list[int]):
    drafter = engine.with_drafter(KnownText(answer=known))
    return generate_speculative(drafter, prompt, PolicySession(Fixed(gamma=24)), DecodeConfig(max_new_tokens=BUDGET))


KNOWN = {
    "right": lambda ids: ids,
    "empty": lambda ids: [],
    "the first half": lambda ids: ids[: len(ids) // 2],
    "one token wrong": lambda ids: [*ids[:5], (ids[5] + 1) % 40, *ids[6:]] if len(ids) > 5 else ids,
    "wrong from the middle on": lambda ids: ids[: len(ids) // 2] + [(token + 1) % 40 for token in ids[len(ids) // 2 :]],
    "all wrong": lambda ids: [(token + 1) % 40 for token in ids],
    "too long": lambda ids: ids + [5] * 200,
    "ended too soon": lambda ids: [*ids[:3], 9, *ids[4:]],
    "shifted": lambda ids: [7, *ids],
    "of another tokenizer": lambda ids: [token + 1_000_000 for token in ids],
    "negative": lambda ids: [-1 - token for token in ids],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_answer_is_the_targets_own_whatever_was_known(kind):
    for engine in ENGINES.values():
        for seed in range(6):
            prompt = draw_prompt(seed, length=1 + 3 * seed)
            own = own_answer(engine, prompt, BUDGET)
            made = confirm(engine, prompt, KNOWN[kind](own))
            assert made.output_ids == own
            assert len(made.rounds) <= len(own)
            assert {r.forwards for r in made.rounds} == {0}


def test_a_right_text_takes_a_forward_per_block():
    """60 tokens in blocks of 24 and one from the target: three forwards. One wrong token: one more."""
    engine, prompt = ENGINES["endless"], draw_prompt(3)
    own = own_answer(engine, prompt, BUDGET)
    assert [r.emitted for r in confirm(engine, prompt, own).rounds] == [25, 25, 10]
    assert [r.emitted for r in confirm(engine, prompt, KNOWN["one token wrong"](own)).rounds] == [6, 25, 25, 4]


def test_a_text_that_ends_early_leaves_the_rest_to_the_target():
    engine, prompt = ENGINES["endless"], draw_prompt(3)
    rounds = confirm(engine, prompt, own_answer(engine, prompt, 10)).rounds
    assert (rounds[0].drafted, rounds[0].accepted, rounds[0].stop) == (10, 10, "drafter")
    assert {(r.drafted, r.stop) for r in rounds[1:-1]} == {(0, "drafter")}


def test_the_draft_takes_no_part():
    engine = table_engine()
    confirm(engine, draw_prompt(1), [5, 6, 7])
    assert engine.drafter.workplace.model.length == 0


def test_known_answers_are_read_by_question_and_turn(tmp_path):
    path = tmp_path / "known.jsonl"
    lines = [{"question_id": 5, "turn": 0, "output_ids": [1, 2]}, {"question_id": 5, "turn": 1, "output_ids": [], "x": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_known(path) == {(5, 0): [1, 2], (5, 1): []}


def test_known_answers_that_are_not_there_are_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"^Cannot read the known answers .*: check the path\.$"):
            read_known(path)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        "",
        '{"question_id": 1, "turn": 0}',
        '{"question_id": "a", "turn": 0, "output_ids": []}',
        '{"question_id": 1, "turn": 0, "output_ids": 7}',
        '{"question_id": 1, "turn": 0, "output_ids": ["word"]}',
        '{"question_id": 1, "turn": null, "output_ids": []}',
    ],
)
def test_a_line_that_is_no_known_answer_is_refused(tmp_path, line):
    path = tmp_path / "known.jsonl"
    path.write_text('{"question_id": 1, "turn": 0, "output_ids": [4]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"holds more than known answers \(\w+ in line 2\): give each line"):
        read_known(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "known.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="more than known answers"):
        read_known(path)
