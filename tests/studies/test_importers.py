"""Logs of several engines: what is read replays to the very log, two logs are joined, times become prices."""

import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from gammatune import cli
from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.policies.fixed import Fixed
from gammatune.policies.gammatune import GammaTune
from gammatune.replay.prices import read_prices
from gammatune.replay.simulate import fill_unknown, prepare, replay
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import read_table
from gammatune.report.notes import describe_bounds
from gammatune.studies.bounds import count_unknown, read_bounds
from gammatune.studies.importers.log_prices import fit_log_prices
from gammatune.studies.importers.rounds import LoggedTurn, SecondLog, find_matches, join_second
from gammatune.traces import MATCH, MISMATCH, UNKNOWN

SPECBENCH = Path(__file__).parents[3] / "shared" / "specbench"
HEURISTIC, CONFIDENCE, PLAIN = (
    SPECBENCH / f"vicuna-7b-v1.3-{name}.jsonl" for name in ("sps-68m.heuristic", "sps-68m.confidence", "vanilla")
)
COMMITS = ("0f00011", "3b73a28", "0f00011")
needs_logs = pytest.mark.skipif(not HEURISTIC.exists(), reason="the public logs are not in ../shared/specbench")


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def refused(ended) -> str:
    code, _, err = ended
    assert code == 2 and err.count("\n") == 1 and err.endswith(".\n"), err
    return err


HEURISTIC_FROM_5 = -5


def play(right: list[bool], gamma: int) -> tuple[list[int], list[int]]:
    """Emitted and drafted tokens per round on an answer whose drafts are right where `right` says so.

    gamma: fixed, or HEURISTIC_FROM_5.
    """
    lengths, drafted, place, planned = [], [], 0, abs(gamma)
    while place < len(right):
        asked = min(planned, len(right) - place - 1)
        accepted = next((i for i in range(asked) if not right[place + i]), asked)
        if gamma < 0:
            planned = planned + 2 if accepted == planned else max(1, planned - 1)
        lengths.append(accepted + 1)
        drafted.append(asked)
        place += accepted + 1
    return lengths, drafted


@pytest.fixture(scope="module")
def answers() -> list[list[bool]]:
    draw = random.Random(3)
    return [[draw.random() < 0.7 for _ in range(draw.randrange(2, 60))] for _ in range(30)]


# vLLM


def response(right: list[bool], gamma: int, prompt_tokens: int = 7) -> dict:
    """Its first token comes out of the prefill, and its last round is counted whole."""
    lengths, drafted = play(right[1:], gamma) if len(right) > 1 else ([], [])
    rounds = {"per_step_accepted": [length - 1 for length in lengths], "per_step_drafted": drafted}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(right)}
    return {"choices": [{"index": 0}], "usage": usage, "metrics": {"speculative_decoding": rounds}}


def test_a_vllm_log_replays_to_itself(tmp_path, call, answers):
    path = write_lines(tmp_path / "chat.jsonl", [response(right, 4) for right in answers])
    code, out, _ = call("import", path, "--format", "vllm", "--out", tmp_path / "t.parquet")
    assert code == 0 and f"{len(answers)} turns" in out and "Prompt lengths" not in out
    table = read_table(tmp_path / "t.parquet")
    assert {turn.task for turn in table.turns} == {"chat"} and {turn.prompt_tokens for turn in table.turns} == {7}
    for turn, right in zip(table.turns, answers, strict=True):
        assert turn.tokens == len(right) and turn.match[0] == UNKNOWN
        known = turn.match != UNKNOWN
        assert (turn.match[known] == np.array(right)[known]).all()
    code, out, _ = call("headline", tmp_path / "t.parquet", "--cost-ratio", 8, "policy=gammatune", "--json")
    assert code == 0 and set(json.loads(out)["gammatune"]["over_mean_fixed"]) == {"lower", "mean", "upper"}


VLLM_FAULTS = {
    "2 choices, but the rounds of one request": lambda line: line["choices"].append({}),
    "Line 2 of .* has no metrics.speculative_decoding.per_step_drafted": lambda line: line["metrics"].clear(),
    "per_step_accepted is no list of whole numbers": lambda line: rounds_of(line).update(per_step_accepted=[1.5]),
    "does not fit per_step_drafted": lambda line: rounds_of(line)["per_step_drafted"].pop(),
    "completion_tokens, but its": lambda line: line["usage"].update(completion_tokens=3000),
    "has no usage": lambda line: line.pop("usage"),
}


def rounds_of(line: dict) -> dict:
    return line["metrics"]["speculative_decoding"]


@pytest.mark.parametrize("sentence", VLLM_FAULTS)
def test_a_response_that_cannot_be_is_named_by_its_line(tmp_path, call, answers, sentence):
    lines = [response(right, 4) for right in answers[:3]]
    VLLM_FAULTS[sentence](lines[1])
    path = write_lines(tmp_path / "chat.jsonl", lines)
    found = refused(call("import", path, "--format", "vllm", "--out", tmp_path / "t.parquet"))
    assert re.search(sentence, found) and "Line 2 of" in found
    assert not (tmp_path / "t.parquet").exists()


# mlx-lm


def test_an_mlx_log_replays_to_itself(tmp_path, call, answers):
    budget = max(map(len, answers))
    lines = []
    for right in answers:
        lengths, _ = play(right + [False] * (budget - len(right)), 3)  # blocks are not cut by an answer's own end
        flags = [flag for length in lengths for flag in [True] * (length - 1) + [False]][: len(right)]
        lines.append({"prompt_tokens": 9, "from_draft": flags})
    path = write_lines(tmp_path / "mlx.jsonl", lines)
    assert call("import", path, "--format", "mlx-lm", "--gamma", 3, "--out", tmp_path / "t.parquet")[0] == 0
    for turn, right in zip(read_table(tmp_path / "t.parquet").turns, answers, strict=True):
        known = turn.match != UNKNOWN
        assert turn.tokens == len(right) and (turn.match[known] == np.array(right)[known]).all()
    assert "--gamma" in refused(call("import", path, "--format", "mlx-lm"))
    assert "contradicts the schedule fixed-1" in refused(call("import", path, "--format", "mlx-lm", "--gamma", 1))
    write_lines(path, [{"from_draft": [True, "no"]}])
    assert "Line 1 of" in refused(call("import", path, "--format", "mlx-lm", "--gamma", 1))


# Tables by position


def position_line(right: list[int], missing: int = 1) -> dict:
    """right: accepted tokens from each start."""
    lists = {"acc_a": {"acc_len": [count + 1 for count in right[missing:]]}, "acc_b": {"acc_len": [1] * len(right)}}
    return {"id": "x", "prompt_token_ids": [1, 2], "generated_token_ids": list(range(len(right))), **lists}


@pytest.fixture
def starts() -> list[list[int]]:
    """Accepted tokens by start: each its own, none beyond the end; nothing at the first, which lists lack."""
    draw = random.Random(5)
    sizes = [draw.randrange(2, 40) for _ in range(20)]
    return [[0, *(min(draw.randrange(6), size - place) for place in range(1, size))] for size in sizes]


def test_a_table_by_position_replays_by_its_starts(tmp_path, call, starts):
    short = position_line(starts[0])
    short["acc_a"]["acc_len"] = short["acc_a"]["acc_len"][5:] or [9]
    path = write_lines(tmp_path / "gsm.jsonl", [*map(position_line, starts), short])
    other = write_lines(tmp_path / "chat.jsonl", [position_line(starts[1])])
    words = ("import", path, other, "--format", "positions", "--out", tmp_path / "t.parquet")
    assert "choose one of acc_a, acc_b with --drafter" in refused(call(*words))
    code, out, _ = call(*words, "--drafter", "acc_a")
    assert code == 0 and "1 of gsm.jsonl, 0 of chat.jsonl" in out
    table = read_table(tmp_path / "t.parquet")
    assert [turn.task for turn in table.turns] == ["gsm"] * len(starts) + ["chat"] and table.complete
    for policy in (Fixed(gamma=3), GammaTune(gamma=2)):
        played = replay(prepare(table), policy, keep_rounds=True)
        for log, right in zip(played.logs, [*starts, starts[1]], strict=True):
            place = 0
            for each in log:
                assert each.accepted == min(right[place], each.drafted, len(right) - place)
                place += each.emitted
            assert place == len(right)
    assert call("headline", tmp_path / "t.parquet", "--cost-ratio", 8, "policy=gammatune")[0] == 0
    assert "watches the draft" in refused(call("headline", tmp_path / "t.parquet", "--cost-ratio", 8, "policy=svip"))


def test_options_of_another_format_are_refused(tmp_path, call, starts):
    path = write_lines(tmp_path / "a.jsonl", [position_line(starts[1])])
    assert "--gamma is not read with --format positions" in refused(
        call("import", path, "--format", "positions", "--gamma", 2)
    )
    assert "--drafter is not read with --format vllm" in refused(call("import", path, "--format", "vllm", "--drafter", "a"))
    assert "reads one file, not 2" in refused(call("import", path, path, "--format", "vllm"))
    assert "--second-most" in refused(call("import", path, "--second-most", 3))
    assert "Line 1 of" in refused(call("import", write_lines(path, [{}]), "--format", "positions"))
    assert "check the path" in refused(call("import", tmp_path / "none", "--format", "positions"))


# Two logs of one pair


def logged(right: list[bool], gamma: int, text: str, question: int = 1, turn: int = 0) -> LoggedTurn:
    lengths, drafted = play(right, gamma)
    return LoggedTurn(question, "qa", turn, lengths, drafted, text)


def test_a_second_log_tells_what_the_first_left_open(answers):
    """The second has other block lengths; a confidence rule is played by a block length that nobody told the importer."""
    for right in answers:
        first, second = logged(right, 2, "same"), logged(right, 5, "same")
        match = find_matches(first.lengths, first.drafted)
        before = match.copy()
        joined = join_second([first], [match], SecondLog([second], "second.jsonl", most=20))
        known = match != UNKNOWN
        assert (match[known] == np.array(right)[known]).all()
        assert joined.contradictions == 0 and joined.learned == int((before == UNKNOWN).sum() - (match == UNKNOWN).sum())
        assert (match[before != UNKNOWN] == before[before != UNKNOWN]).all()


def test_texts_are_used_up_to_where_they_part():
    right = [True] * 12
    first = logged(right, 1, "one two three four five six")
    second = logged(right, 5, "one two three 4 five six")
    later = logged(right, 1, "same", turn=1)
    matches = [find_matches(turn.lengths, turn.drafted) for turn in (first, later)]
    second_turns = [second, logged(right, 5, "same", turn=1)]
    joined = join_second([first, later], matches, SecondLog(second_turns, "second.jsonl", most=20))
    assert joined.shared == 2 and joined.same_turns == 0  # whole words before the last one; the later turn's prompt differs
    assert matches[0][1] == MATCH and matches[0][3] == UNKNOWN and matches[1][1] == UNKNOWN


def test_contradictions_are_counted_and_the_first_log_stays():
    first, second = logged([True, True, False, True], 3, "same"), logged([True, False, False, True], 3, "same")
    match = find_matches(first.lengths, first.drafted)
    second.lengths = [1, 1, 1, 1]  # empty rounds: a mismatch everywhere
    joined = join_second([first], [match], SecondLog([second], "second.jsonl", most=20))
    assert joined.contradictions == 2 and match.tolist() == [MATCH, MATCH, MISMATCH, UNKNOWN]
    with pytest.raises(UserError, match="second.jsonl answers no question as the first log does"):
        join_second([first], [match], SecondLog([logged([True] * 4, 3, "same", question=2)], "second.jsonl", 20))
    second.lengths = [4]
    with pytest.raises(UserError, match="more than 2: give the longest block of that run with --second-most"):
        join_second([first], [match], SecondLog([second], "second.jsonl", 2))


def write_answers(path: Path, answers: list[list[bool]], gamma: int, seconds: float = 0.0) -> Path:
    """An answer file of Spec-Bench, one turn a question; gamma 0: the target alone, which then times each turn."""
    lines = []
    for number, right in enumerate(answers):
        turn = logged(right, gamma, f"text {number}")
        wall = seconds * turn.tokens if not gamma else 0.020 * len(turn.lengths) + 0.002 * sum(turn.drafted)
        choice = {"turns": [turn.text], "decoding_steps": [len(turn.lengths)], "new_tokens": [turn.tokens]}
        choice |= {"accept_lengths": turn.lengths, "wall_time": [wall]}
        lines.append({"question_id": 321 + number, "category": "qa", "model_id": "m-temp-0.0", "choices": [choice]})
    return write_lines(path, lines)


def test_where_each_of_three_logs_comes_from_goes_into_the_bounds(tmp_path, call, answers):
    files = {"first": HEURISTIC_FROM_5, "second": 5, "plain": 0}
    paths = {name: write_answers(tmp_path / f"{name}.jsonl", answers, gamma, 0.022) for name, gamma in files.items()}
    words = ["import", paths["first"], "--out", tmp_path / "t" / "acceptance.parquet"]
    assert "--second-source is where the log of --second" in refused(call(*words, "--second-source", "there"))
    assert "--plain-source is where the log of --plain" in refused(call(*words, "--plain-source", "there"))
    words += ["--source", "A at 1", "--second", paths["second"], "--second-source", "B at 2"]
    assert call(*words, "--plain", paths["plain"], "--plain-source", "C at 3")[0] == 0
    assert call("bounds", tmp_path / "t", "policy=[gammatune,hf_heuristic]", "--out", tmp_path / "out")[0] == 0
    source = read_bounds(tmp_path / "out").source
    told = {"first": source, "second": source["second"], "plain": source["own_prices"]["plain"]}
    assert {name: facts["source"] for name, facts in told.items()} == {
        "first": "A at 1",
        "second": "B at 2",
        "plain": "C at 3",
    }
    for name, facts in told.items():
        assert facts["sha256"] == hashlib.sha256(paths[name].read_bytes()).hexdigest()
    assert "a second log, B at 2, whose blocks a confidence rule ended (inferred, not logged)" in describe_bounds(source)


# Prices of a log


def timed(answers: list[list[bool]], noise: float = 0.0) -> tuple[list[LoggedTurn], list[LoggedTurn]]:
    draw, turns, plain = random.Random(1), [], []
    for right in answers:
        turn = logged(right, 4, "x")
        turn.seconds = 0.050 + 0.020 * len(turn.lengths) + 0.002 * sum(turn.drafted) + draw.gauss(0, noise)
        turns.append(turn)
        plain.append(LoggedTurn(1, "qa", 0, [1] * len(right), seconds=0.030 + 0.021 * len(right) + draw.gauss(0, noise)))
    return turns, plain


def test_prices_come_out_of_wall_times(answers):
    turns, plain = timed(answers)
    curve = fit_log_prices(turns, [turn.drafted for turn in turns], plain, {})
    assert curve.blind.step.base == pytest.approx(2.0) and curve.verify[5].base == pytest.approx(20.0)
    assert curve.verify[0].base == pytest.approx(21.0) and curve.ratio() == pytest.approx(10.5)
    assert curve.prefill_both.base == pytest.approx(50.0) and curve.prefill_target.base == pytest.approx(30.0)
    turns, plain = timed(answers, noise=0.004)
    found = fit_log_prices(turns, [turn.drafted for turn in turns], plain, {}).facts["prices_95"]["T_draft"]
    assert found["low"] < 2.0 < found["high"] and found["high"] - found["low"] < 2.0


def test_prices_that_do_not_follow_are_refused(answers):
    turns, plain = timed(answers, noise=5.0)
    with pytest.raises(UserError, match="do not tell T_.*use --cost-ratio"):
        fit_log_prices(turns, [turn.drafted for turn in turns], plain, {})
    turns[0].seconds = None
    with pytest.raises(UserError, match="The log has no wall time"):
        fit_log_prices(turns, [turn.drafted for turn in turns], plain, {})


# The public logs of Vicuna-7B and its 68M draft


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Path:
    """The folder of their table and its prices."""
    folder = tmp_path_factory.mktemp("public")
    words = ["import", HEURISTIC, "--second", CONFIDENCE, "--plain", PLAIN, "--out", folder / "acceptance.parquet"]
    assert cli.main([*map(str, words)]) == 0
    return folder


@needs_logs
def test_the_stored_bounds_are_of_the_public_logs(public):
    """The ends from one start, which no random fill decides, and what was read."""
    stored = read_bounds(Path(__file__).parents[2] / "results" / "reference" / "vicuna-7b-68m-specbench-logs")
    source = stored.source
    told = {HEURISTIC: source, CONFIDENCE: source["second"], PLAIN: source["own_prices"]["plain"]}
    assert all(facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() for path, facts in told.items())
    assert all(
        f"at commit {commit}, Apache-2.0" in facts["source"] for commit, facts in zip(COMMITS, told.values(), strict=True)
    )
    table, curve = read_table(public / "acceptance.parquet"), read_prices(public / "prices.json")
    headline = stored.headline.set_index(["policy", "metric"])[["lower", "mean", "upper"]].round(3)
    assert headline.loc[("gammatune", "over_mean_fixed")].tolist() == [1.162, 1.116, 1.099]
    assert headline.loc[("gammatune", "over_best_fixed")].tolist() == [0.973, 0.949, 0.937]
    assert headline.loc[("gammatune", "over_heuristic")].tolist() == [0.960, 0.994, 1.007]
    rows = stored.starts.set_index(["policy", "start"])
    for end, rate in (("lower", 0.0), ("upper", 1.0)):
        bench = build_bench(fill_unknown(table, rate), curve)
        alone = bench.speeds(POLICIES["ar"]()).mean()
        for name in ("fixed", "gammatune", "hf_heuristic"):
            found = bench.speeds(POLICIES[name](gamma=4)).mean() / alone
            assert rows.loc[(name, 4), end] == pytest.approx(found, rel=1e-5)


@needs_logs
def test_the_replay_of_the_logs_own_schedule_is_as_fast_as_its_clock_says(public):
    """At prices fitted to totals, of which the gain per question could still be far off."""
    table, curve = read_table(public / "acceptance.parquet"), read_prices(public / "prices.json")
    bench = build_bench(fill_unknown(table, 0.5, 1), curve)
    modelled = bench.speeds(POLICIES["hf_heuristic"]()).mean() / bench.speeds(POLICIES["ar"]()).mean()
    assert modelled == pytest.approx(clocked_speed(HEURISTIC) / clocked_speed(PLAIN), rel=0.01)


def clocked_speed(path: Path) -> float:
    """Mean over questions of tokens per second, as Spec-Bench counts it."""
    choices = [json.loads(line)["choices"][0] for line in path.read_text().splitlines()]
    return float(np.mean([sum(each["new_tokens"]) / sum(each["wall_time"]) for each in choices]))


@needs_logs
def test_two_public_logs_in_numbers(tmp_path, call):
    words = ("import", HEURISTIC, "--second", CONFIDENCE, "--plain", PLAIN, "--out", tmp_path / "t.parquet")
    code, out, _ = call(*words)
    assert code == 0 and "92,564 tokens in 40,632 rounds" in out and "505 turns with equal text" in out
    table, curve = read_table(tmp_path / "t.parquet"), read_prices(tmp_path / "prices.json")
    assert count_unknown(table) == pytest.approx(0.068, abs=0.0005) and table.facts["second"]["contradictions"] == 12
    found = curve.facts["prices_95"]
    assert [round(found[name]["ms"], 2) for name in ("T_target", "T_verify", "T_draft")] == [22.97, 22.28, 1.94]
    assert curve.ratio() == pytest.approx(11.83, abs=0.005) and curve.facts["explained"]["drafted"] > 0.98
    # the first log's own rounds, whatever the second one filled in
    rounds = replay(prepare(fill_unknown(table, 0.5, 1)), Fixed(gamma=1)).rounds
    assert 40_632 < rounds < 92_564
