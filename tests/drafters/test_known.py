"""Known answers are confirmed in few forwards where they are right, and change nothing where they are wrong."""

import json

import pytest
import torch

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import generate_autoregressive
from gammatune.drafters.known import confirm_answer, read_known
from gammatune.errors import UserError
from gammatune.models.pair import random_pair
from gammatune.runtimes.base import eager_runtime

BUDGET = 60
DECODE = DecodeConfig(max_new_tokens=BUDGET)


def make_runtime(ends: tuple[int, ...]):
    runtime = eager_runtime(random_pair(seed=1, noise=0.4, vocab_size=40))
    runtime.pair.eos_ids = ends
    return runtime


ENDLESS, ENDING = make_runtime(()), make_runtime((9, 17))


def prompt_of(seed: int, length: int = 7) -> list[int]:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


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
@pytest.mark.parametrize("runtime", [ENDLESS, ENDING], ids=["endless", "ending"])
def test_the_answer_is_the_targets_own_whatever_was_known(runtime, kind):
    for seed in range(6):
        prompt = prompt_of(seed, length=1 + 3 * seed)
        own = generate_autoregressive(runtime, prompt, DECODE)
        made = confirm_answer(runtime, prompt, KNOWN[kind](own.output_ids), DECODE)
        assert (made.output_ids, made.finish) == (own.output_ids, own.finish)
        assert len(made.rounds) <= len(own.rounds)


def test_a_right_text_takes_a_forward_per_block():
    """60 tokens in blocks of 24 and one from the target: three forwards."""
    prompt = prompt_of(3)
    own = generate_autoregressive(ENDLESS, prompt, DECODE)
    made = confirm_answer(ENDLESS, prompt, own.output_ids, DECODE)
    assert len(own.rounds) == BUDGET
    assert [r.emitted for r in made.rounds] == [25, 25, 10]


def test_a_right_text_with_one_wrong_token_takes_hardly_more():
    prompt = prompt_of(3)
    own = generate_autoregressive(ENDLESS, prompt, DECODE).output_ids
    made = confirm_answer(ENDLESS, prompt, [*own[:30], (own[30] + 1) % 40, *own[31:]], DECODE)
    assert made.output_ids == own
    assert len(made.rounds) <= 5


def test_a_wrong_text_soon_costs_a_short_block_a_forward():
    prompt = prompt_of(3)
    own = generate_autoregressive(ENDLESS, prompt, DECODE).output_ids
    made = confirm_answer(ENDLESS, prompt, [(token + 1) % 40 for token in own], DECODE)
    assert len(made.rounds) == BUDGET
    assert made.rounds[20].drafted == 1


def test_the_models_behind_are_left_as_they_were():
    """The draft of the runtime takes no part, so that recording finds its cache empty."""
    confirm_answer(ENDLESS, prompt_of(1), [5, 6, 7], DECODE)
    ENDLESS.reset()
    again = generate_autoregressive(ENDLESS, prompt_of(2), DECODE).output_ids
    confirm_answer(ENDLESS, prompt_of(2), again, DECODE)
    assert ENDLESS.draft.length == 0


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
    with pytest.raises(UserError, match=r"holds more than known answers \(\w+ behind 1 good lines\): give each line"):
        read_known(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "known.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="more than known answers"):
        read_known(path)
