"""Our loop beside transformers': what is printed, that answers are judged, and that transformers is called at its best."""

import pandas as pd
import pytest
from harness import Decoder, Speeds

from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES

SMALL = ("--questions", 2, "--tokens", 12, "--repeats", 1, "--dtypes", "fp32")
KINDS = ("autoregressive", "fixed_2", "fixed_5")


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("vs_transformers")


def test_every_arm_has_a_row_and_every_ratio_its_interval(benchmark, call):
    ended = call(benchmark, *SMALL, "--dtypes", "fp32,bf16")
    result = ended.result
    assert ended.code == 0
    arms = {(row["decoding"], row["by"], row["dtype"]) for row in result["rows"]}
    assert arms >= {(kind, by, d) for kind in KINDS for by in ("eager", "transformers") for d in ("fp32", "bf16")}
    assert {by for _, by, _ in arms} <= {"eager", "compiled", *benchmark.THEIRS}
    assert {kind for kind, by, _ in arms if by == benchmark.PADDED} == {"fixed_2", "fixed_5"}
    for kind in KINDS:
        low, high = result[f"{kind}_ratio_interval"]
        assert 0 < low <= result[f"{kind}_ratio"] <= high
        assert result["over_best_dtype"][kind] > 0
        assert result["runtime"][kind] in ("eager", "compiled")
    for row in result["rows"]:
        if row["by"] in benchmark.THEIRS:
            assert row["ratio"] is None
        else:
            assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["different"] == 0
        assert row["near_tie"] == 0 or row["dtype"] == "bf16" or row["by"] == "compiled"
    plain = [row for row in result["rows"] if row["decoding"] == "autoregressive" and row["by"] != "transformers"]
    assert result["dtype"] == max(plain, key=lambda row: row["tokens_per_second"])["dtype"]
    assert set(result["versions"]) == {"python", "torch", "transformers"}


def test_a_reduced_vocabulary_is_for_our_loop_alone_and_has_its_own_rows(benchmark, call):
    ended = call(benchmark, *SMALL, "model_pair.draft.vocabulary=100")
    reduced = [row["decoding"] for row in ended.result["rows"] if row["by"] == "eager, reduced vocabulary"]
    assert ended.code == 0
    assert reduced == ["fixed_2", "fixed_5"]
    assert set(ended.result["reduced_vocabulary"]) == {"fixed_2", "fixed_5"}
    assert all(row["different"] == 0 for row in ended.result["rows"])


def test_a_wrong_answer_is_named_and_ends_with_1(benchmark, call, corrupt):
    corrupt(5)
    ended = call(benchmark, *SMALL)
    assert ended.code == 1
    assert "Wrong answer of fixed_5 eager fp32 to question 1, from token 3 on." in ended.out
    wrong = {(row["decoding"], row["by"]) for row in ended.result["rows"] if row["different"]}
    assert ("fixed_5", "eager") in wrong
    assert wrong <= {("fixed_5", "eager"), ("fixed_5", "compiled")}


@pytest.mark.parametrize("gamma", [2, 5])
def test_transformers_after_padding_drafts_as_we_do_and_feeds_no_text_twice(benchmark, gamma):
    pair, prompt, fed = random_pair(seed=3, noise=0.1), list(range(10, 60)), []
    ours = Decoder(pair, "eager").answer(prompt, POLICIES["fixed"](gamma=gamma), 30)
    pair.draft.register_forward_pre_hook(
        lambda module, args, inputs: fed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    assert benchmark.answer_theirs(pair, gamma, 30, prompt, padded=True) == ours.output_ids
    assert len(fed) == sum(r.forwards for r in ours.rounds) > 10
    assert max(fed[1:]) <= 2


def make_speeds(benchmark, columns: dict) -> Speeds:
    """Speeds from {labels: [questions][repeats]}: so many tokens in a second."""
    rows = [
        {**dict(zip(benchmark.LABELS, key, strict=True)), "input": q, "repeat": r, "seconds": 1.0, "ids": (0,) * speed}
        for key, found in columns.items()
        for q, repeats in enumerate(found)
        for r, speed in enumerate(repeats)
    ]
    return Speeds(pd.DataFrame(rows), benchmark.LABELS)


def test_ratios_are_medians_over_repeats_then_questions(benchmark):
    ours, theirs = ("fixed_2", "eager", "fp32"), ("fixed_2", "transformers", "fp32")
    found = {ours: [(2, 4, 9), (1, 1, 1), (6, 8, 7)], theirs: [(1, 2, 1), (1, 2, 4), (1, 1, 1)]}
    speeds = make_speeds(benchmark, found)
    assert speeds.ratios(ours, theirs).tolist() == [2.0, 0.5, 7.0]
    assert speeds.of(ours) == 4.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--questions", 1), "--questions 1 must be 2 or more."),
        (("--questions", 99), "--questions 99 is more than tasks demo has: choose at most 24."),
        (("--tokens", 5000), "--tokens 5000 does not fit"),
        (("--dtypes", "fp8"), "--dtypes=fp8 is not known"),
        (("runtime.device=tpu",), "The device tpu is not known"),
        (("model_pair=foo",), "model_pair=foo is not known"),
        (("foo",), "The argument foo cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(benchmark, call, words, sentence):
    ended = call(benchmark, *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(sentence)
    assert ended.err.count("\n") == 1


def test_ours_is_held_against_the_faster_of_their_arms(benchmark):
    speeds = {"eager": 6, "compiled": 9, benchmark.PLAIN: 2, benchmark.PADDED: 3}
    columns = {(kind, by, "fp32"): [(speed,), (speed,)] for by, speed in speeds.items() for kind in KINDS}
    found = benchmark.summarise(make_speeds(benchmark, columns))
    assert (found["fixed_2_ratio"], found["fixed_2_ratio_interval"]) == (3.0, [3.0, 3.0])
    assert found["runtime"]["fixed_2"] == "compiled" and found["reduced_vocabulary"] == {}
