"""Forms of a draft are compared by what they propose and what a step of theirs takes."""

import pytest
from harness import Decoder, read_prompts

from gammatune.compose import compose_config
from gammatune.models.pair import load_pair
from gammatune.policies import POLICIES

WORDS = ("--questions", 2, "--tokens", 24, "--repeats", 2, "--context", 40, "--gamma", 3, "runtime=compiled")


@pytest.fixture(scope="module")
def live() -> float:
    """Tokens a round of the tiny pair with its whole draft, decoded."""
    config = compose_config(["model_pair=tiny-random", "tasks=demo"])
    decoder = Decoder(load_pair(config.model_pair), "compiled", 1)
    prompts = read_prompts(decoder.pair, config, 2, 24)
    made = [decoder.answer(prompt, POLICIES["fixed"](gamma=3), 24) for prompt in prompts]
    return sum(len(each.output_ids) for each in made) / sum(len(each.rounds) for each in made)


def test_every_form_has_a_row_and_the_whole_draft_does_as_it_does_live(load_benchmark, call, live):
    ended = call(load_benchmark("draft_forms"), *WORDS, "--vocabularies", "8,100", "tasks=demo")
    result = ended.result
    rows = {(row["weights"], row["vocabulary"]): row for row in result["rows"]}
    assert ended.code == 0 and list(rows) == [(w, v) for w in ("float32", "int8") for v in (8, 100, 260)]
    assert rows["float32", 260]["tokens_a_round"] == pytest.approx(live)
    assert rows["float32", 8]["agreement"] < rows["float32", 260]["agreement"]
    for row in rows.values():
        assert 0 <= row["agreement"] <= 1 <= row["tokens_a_round"] <= 4 and row["low"] <= row["draft_ms"] <= row["high"]
        round_ms = 3 * row["draft_ms"] + result["verify_ms"]
        assert row["modelled_speedup"] == pytest.approx(row["tokens_a_round"] * result["target_ms"] / round_ms, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--vocabularies", "8,all"), "--vocabularies 8,all must be whole numbers"),
        (("--vocabularies", "0"), "--vocabularies 0 must be whole numbers from 1"),
        (("--vocabularies", "1000"), "more than the 260 tokens of its ranking"),
    ],
)
def test_bad_input_is_one_sentence(load_benchmark, call, words, sentence):
    ended = call(load_benchmark("draft_forms"), *WORDS, *words)
    assert (ended.code, ended.out) == (2, "") and sentence in ended.err
