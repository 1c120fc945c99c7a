"""Sizes of the draft's head beside each other: every row has its numbers, and the ids stay the target's own."""

import pytest

SMALL = ("--questions", 2, "--tokens", 12, "--steps", 3)


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("draft_head")


@pytest.mark.parametrize("runtime", ["eager", "compiled"])
def test_every_size_has_a_row_for_every_policy(benchmark, call, runtime):
    ended = call(benchmark, *SMALL, "--heads", "130,20", f"runtime={runtime}")
    result = ended.result
    assert ended.code == 0 and result["runtime"] in (runtime, "eager")
    assert [row["head"] for row in result["rows"]] == ["20"] * 3 + ["130"] * 3 + ["all"] * 3
    assert {row["policy"] for row in result["rows"]} == {"fixed_5", "gammatune", "gammatune_plus"}
    assert result["best"] in (20, 130, None)
    for row in result["rows"]:
        assert 0 <= row["acceptance_rate"] <= 1 <= row["mean_accepted_tokens"] <= 12
        assert row["draft_step_ms"] > 0 and 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["other_ids"] == 0, "in fp32 a smaller draft changes no answer"
        assert row["head"] != "all" or row["ratio"] == 1
    rates = {row["head"]: row["acceptance_rate"] for row in result["rows"] if row["policy"] == "fixed_5"}
    assert rates["20"] < rates["all"]


def test_a_head_of_all_tokens_drafts_as_the_whole_one(benchmark, call):
    rows = call(benchmark, *SMALL, "--heads", 260).result["rows"]
    columns = ("policy", "acceptance_rate", "mean_accepted_tokens")
    found = {head: [[row[name] for name in columns] for row in rows if row["head"] == head] for head in ("260", "all")}
    assert found["260"] == found["all"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--heads", "few"), "--heads few must be whole numbers of 1 or more"),
        (("--heads", "0"), "--heads 0 must be whole numbers of 1 or more"),
        (("--heads", "20,"), "--heads 20, must be whole numbers of 1 or more"),
        (("--heads", "20,300"), "model_pair.draft.vocabulary=300 is more than the 260 tokens of its ranking"),
        (("--heads", "20", "--questions", "1"), "--questions 1 must be 2 or more"),
        (("--heads", "20", "decode.temperature=1"), "leave decode=greedy"),
        (("--heads", "20", "model_pair.draft.ranking=/none.npy"), "/none.npy is no file"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(benchmark, call, words, sentence):
    ended = call(benchmark, *words)
    assert (ended.code, ended.out) == (2, "") and sentence in ended.err and ended.err.count("\n") == 1
