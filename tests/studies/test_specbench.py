"""Spec-Bench's answer files: what is read replays to the very log, and what is written is what its scripts read."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from report.stored import Recipe, change_done, store_run

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.policies.fixed import Fixed
from gammatune.replay.simulate import fill_unknown, prepare, replay
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, read_table
from gammatune.report import metrics
from gammatune.runs.store import read_run
from gammatune.studies.bounds import estimate_match_rate
from gammatune.studies.importers import specbench
from gammatune.studies.importers.rounds import Schedule, build_schedule, schedule_names
from gammatune.studies.importers.specbench import category_of, read_drafted
from gammatune.traces import TextTrace

SPECBENCH = Path(__file__).parents[3] / "shared" / "specbench"
DRAFTED_LOG = SPECBENCH / "vicuna-7b-v1.3-sps-68m-mt_bench.jsonl"
PLAIN_LOG = SPECBENCH / "vicuna-7b-v1.3-vanilla-mt_bench.jsonl"
needs_log = pytest.mark.skipif(not DRAFTED_LOG.exists(), reason="Spec-Bench's answer files are not in ../shared/specbench")
FILLS = [(0.0, 0), (1.0, 0), (0.5, 1), (0.72, 2)]
EMPTY = np.zeros(0, np.int8)
CHOICE = [
    ("index", int),
    ("turns", [str]),
    ("decoding_steps", [int]),
    ("new_tokens", [int]),
    ("wall_time", [float]),
    ("accept_lengths", [int]),
]
ANSWER = [
    ("question_id", int),
    ("category", str),
    ("answer_id", str),
    ("model_id", str),
    ("choices", [CHOICE]),
    ("tstamp", float),
]


def import_answers(path: Path, schedule: Schedule) -> AcceptanceTable:
    return specbench.import_answers(read_drafted(path, schedule))


def make_trace(match: np.ndarray) -> TextTrace:
    """Matches alone, as a log tells them."""
    return TextTrace(match, None, EMPTY.astype(np.int8), EMPTY.astype(bool), None)


def draw_turn(rng: np.random.Generator, question: int, turn: int, budget: int) -> AcceptanceTurn:
    """A turn whose draft is right at random, in good and bad stretches; one in four runs into the budget."""
    finish = "length" if rng.random() < 0.25 else "eos"
    tokens = budget if finish == "length" else int(rng.integers(1, budget))
    match = (rng.random(tokens) < np.repeat(rng.random(tokens // 10 + 1), 10)[:tokens]).astype(np.int8)
    return AcceptanceTurn(question, "qa", "qa", turn, 0, budget, finish, EMPTY, make_trace(match))


def draw_table(seed: int, budget: int = 90) -> AcceptanceTable:
    rng = np.random.default_rng(seed)
    return AcceptanceTable([draw_turn(rng, question, turn, budget) for question in range(321, 327) for turn in range(2)])


def play(table: AcceptanceTable, policy) -> list[list[int]]:
    """Emitted tokens per round and turn."""
    return [[r.emitted for r in log] for log in replay(prepare(table), policy, keep_rounds=True).logs]


def write_log(path: Path, table: AcceptanceTable, policy, **changes) -> Path:
    """What Spec-Bench would have logged; keywords replace fields of the first question's line, or of its choice."""
    rounds, lines = play(table, policy), []
    for place in range(0, len(table.turns), 2):
        pair, lengths = table.turns[place : place + 2], rounds[place : place + 2]
        choice = {
            "index": 0,
            "turns": ["words"] * len(pair),
            "decoding_steps": [len(emitted) for emitted in lengths],
            "new_tokens": [turn.tokens for turn in pair],
            "wall_time": [1.5] * len(pair),
            "accept_lengths": sum(lengths, []),
        }
        line = {"question_id": pair[0].question_id, "category": "qa", "answer_id": "a", "model_id": "m-temp-0.0"}
        if not lines:
            choice |= {name: value for name, value in changes.items() if name in choice}
            line |= {name: value for name, value in changes.items() if name not in choice}
        lines.append(line | {"choices": [choice], "tstamp": 1.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def heuristic():
    return POLICIES["hf_heuristic"](full="planned")


@pytest.mark.parametrize(("name", "gamma"), [("hf_heuristic", 5), ("fixed", 3), ("gammatune", 3), ("ucb", None)])
def test_an_imported_log_replays_to_itself_and_knows_only_what_is_true(tmp_path, name, gamma):
    settings = {} if gamma is None else {"gamma": gamma}
    original = draw_table(len(name))
    path = write_log(tmp_path / "log.jsonl", original, POLICIES[name](**settings))
    table = import_answers(path, build_schedule(name, gamma, max_new_tokens=90))
    for rate, fill_seed in FILLS:
        assert play(fill_unknown(table, rate, fill_seed), POLICIES[name](**settings)) == play(
            original, POLICIES[name](**settings)
        )
    for true, told in zip(original.turns, table.turns, strict=True):
        known = told.match != -1
        assert (told.match[known] == true.match[known]).all() and not known[-1]
        assert (told.tokens, told.finish, told.turn) == (true.tokens, true.finish, true.turn)
    assert 0.6 < np.mean([(turn.match != -1).mean() for turn in table.turns]) < 1


@dataclass
class Witness(Fixed):
    """A fixed gamma that keeps the rounds it was shown."""

    def reset(self):
        self.seen = []

    def observe(self, finished):
        self.seen.append(finished.counts()[:-1])


def test_the_schedule_is_shown_the_rounds_of_a_live_run(tmp_path):
    """Also where the budget cuts a block; the last round apart, whose draft nobody knows."""
    original = AcceptanceTable([next(t for t in draw_table(3, budget=20).turns if t.finish == "length")])
    path = write_log(tmp_path / "log.jsonl", original, Fixed(gamma=9))
    witness = Witness(gamma=9)
    import_answers(path, Schedule("fixed", witness, 20))
    live = [r.counts()[:-1] for r in replay(prepare(original), Fixed(gamma=9), keep_rounds=True).logs[0]]
    assert witness.seen[:-1] == live[:-1] and "budget" in {counts[4] for counts in live[:-1]}


def test_each_kind_of_round_by_hand(tmp_path):
    """gamma 2: nothing accepted, partly accepted, fully accepted, and a last round that nobody can tell."""
    choice = {"turns": ["a"], "decoding_steps": [4], "new_tokens": [8], "accept_lengths": [1, 2, 3, 2]}
    (tmp_path / "log.jsonl").write_text(json.dumps({"question_id": 105, "choices": [choice]}))
    turn = import_answers(tmp_path / "log.jsonl", build_schedule("fixed", 2)).turns[0]
    assert turn.match.tolist() == [0, 1, 0, 1, 1, -1, 1, -1]
    assert (turn.category, turn.task, turn.finish, turn.budget) == ("reasoning", "mt_bench", "eos", 1024)


def test_categories_by_id_where_the_file_has_none():
    known = {81: "writing", 160: "humanities", 161: "translation", 241: "summarization", 400: "qa", 401: "math_reasoning"}
    assert {number: category_of(number) for number in known} == known
    assert category_of(560) == "rag" and category_of(80) is None and category_of(561) is None


def test_a_failed_turn_is_left_out_and_named(tmp_path, heuristic):
    path = write_log(tmp_path / "log.jsonl", draw_table(0), heuristic, turns=["words", "ERROR"])
    table = import_answers(path, build_schedule("hf_heuristic", 5, 90))
    assert table.facts["failed"] == ["turn 2 of question 321"]
    assert [(turn.question_id, turn.turn) for turn in table.turns][:3] == [(321, 0), (322, 0), (322, 1)]


def refused(ended: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, out, error = ended
    assert (code, out) == (2, "") and error.count("\n") == 1 and error.endswith(".\n")
    return error


def test_import_writes_a_table_and_doubts_lengths_that_no_round_reached(tmp_path, monkeypatch, heuristic, call):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.jsonl", draw_table(0), heuristic)
    code, out, _ = call("import", "log.jsonl", "--max-new-tokens", 90)
    table = read_table(tmp_path / "results/acceptance/log-hf_heuristic-5/acceptance.parquet")
    assert code == 0 and table.facts["source"] == "log.jsonl" and table.facts["schedule"] == "hf_heuristic-5"
    assert not table.watched and not table.complete
    assert f"12 turns, {table.tokens} tokens in {table.facts['rounds']} rounds, none of which" in out
    doubt = "nothing in the log confirms the planned lengths"
    assert doubt not in out
    assert doubt in call("import", "log.jsonl", "--max-new-tokens", 90, "--schedule", "fixed", "--gamma", 80)[1]


def test_a_file_that_is_no_log_is_refused(tmp_path, call):
    path = tmp_path / "log.jsonl"
    for text, sentence in {
        "{": f"Line 1 of {path} cannot be used .it is not JSON",
        '\n{"question_id": 81}': f"Line 2 of {path} has no choices",
        "[]": "Line 1 of .* cannot be used .the line is no JSON object",
        '{"question_id": "81", "choices": [{}]}': "is no answer .Field 'question_id' expected int, got str",
        '{"question_id": 81, "choices": [{"turns": ["a"]}]}': "Field 'decoding_steps' expected a list, got NoneType",
        "\n": "is empty",
    }.items():
        path.write_text(text)
        assert re.search(sentence, refused(call("import", path)))
    assert "cannot be read (No such file or directory): check the path" in refused(call("import", tmp_path / "nowhere"))


WRONG = {
    "turns, decoding_steps and new_tokens are of different lengths": {"turns": ["one"]},
    "decoding_steps, new_tokens and accept_lengths must be 1 or more": {"accept_lengths": [2, 0, 1]},
    "Invalid item at index 1 in list 'accept_lengths'": {"accept_lengths": [2, 0.5, 1]},
    "Turn 1 of question 321 in .* does not add up": {"new_tokens": [1000, 1]},
    r"does not add up .* rounds emit 3\)": {"decoding_steps": [2, 1], "new_tokens": [9, 1], "accept_lengths": [2, 1, 1]},
    "has 4 accept_lengths for 3 decoding_steps": {
        "decoding_steps": [2, 1],
        "new_tokens": [3, 1],
        "accept_lengths": [2, 1, 1, 1],
    },
    "answers question 322 twice": {"question_id": 322},
    "is a sampled answer .vicuna-temp-1.0.": {"model_id": "vicuna-temp-1.0"},
    "none of Spec-Bench's": {"question_id": 7, "category": None},
    "Turn 2 of question 321 in .* has 95 tokens, more than 90": {
        "decoding_steps": [1, 19],
        "new_tokens": [5, 95],
        "accept_lengths": [5] * 20,
    },
    "round 2 of turn 2 of question 321 accepted 8 draft tokens, more than the 7 planned": {
        "decoding_steps": [1, 2],
        "new_tokens": [1, 15],
        "accept_lengths": [1, 6, 9],
    },
}


def test_a_log_that_cannot_be_is_refused(tmp_path, heuristic, call):
    for sentence, changes in WRONG.items():
        path = write_log(tmp_path / "log.jsonl", draw_table(0), heuristic, **changes)
        ended = call("import", path, "--max-new-tokens", 90, "--out", tmp_path / "t.parquet")
        assert re.search(sentence, refused(ended)), sentence
    path = write_log(tmp_path / "log.jsonl", draw_table(0), POLICIES["ar"]())
    ended = call("import", path, "--max-new-tokens", 90, "--out", tmp_path / "t.parquet")
    assert "accepted a draft token: give the file of a run with a draft model" in refused(ended)
    assert not (tmp_path / "t.parquet").exists()


def test_text_that_looks_like_a_template_is_only_text(tmp_path, heuristic):
    path = write_log(tmp_path / "log.jsonl", draw_table(0), heuristic, turns=["${HOME} ???", "{{x}}"])
    assert len(import_answers(path, build_schedule("hf_heuristic", 5, 90)).turns) == 12


def test_wrong_options_are_refused(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    hits = np.array([1, 1, 1, 1, 1, 0, 1, 1], np.int8)
    turn = AcceptanceTurn(321, "qa", "qa", 0, 0, 90, "eos", EMPTY, make_trace(hits))
    write_log(Path("log.jsonl"), AcceptanceTable([turn]), POLICIES["hf_heuristic"]())
    for words, sentence in {
        "--schedule hf_heuristics": "hf_heuristics is not known: choose one of fixed, ",
        "--schedule svip": "svip watches the draft",
        "--schedule oracle": "cannot be told from the rounds of a turn alone",
        "--schedule sglang_walk": "cannot be told from the rounds of a turn alone",
        "--schedule ucb --gamma 3": "ucb has no gamma",
        "--gamma 0": "HFHeuristic.gamma=0 is out of range",
        "--schedule fixed --gamma 1": "contradicts the schedule fixed-1: round 1 of turn 1 of question",
        "--max-new-tokens 0": "is no whole number from 1 to",
        "--out log.jsonl": "must name a file that ends with .parquet",
    }.items():
        assert sentence in refused(call("import", "log.jsonl", *words.split()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(store_run(tmp_path_factory.mktemp("runs") / "demo", Recipe(questions=4, repetitions=1)))


@pytest.fixture
def export(call):
    """export(run, folder, *words) -> answers by the path of their file under `folder`."""

    def exported(run, out: Path, *words) -> dict[str, list[dict]]:
        assert call("export", run.path, "--out", out, *words)[0] == 0
        files = sorted(out.rglob("*.jsonl"))
        return {str(f.relative_to(out).with_suffix("")): [json.loads(x) for x in f.read_text().splitlines()] for f in files}

    return exported


def schema_of(value):
    """Names in order and types, nested; a list by the one schema that all its items share."""
    if isinstance(value, dict):
        return [(name, schema_of(item)) for name, item in value.items()]
    if isinstance(value, list):
        assert len({str(schema_of(item)) for item in value}) == 1
        return [schema_of(value[0])]
    return type(value)


def test_every_line_has_the_written_down_schema(run, export, tmp_path):
    files = export(run, tmp_path)
    assert list(files) == sorted(arm.label for arm in run.arms)
    assert all(schema_of(line) == ANSWER for lines in files.values() for line in lines)


@needs_log
@pytest.mark.parametrize("log", [DRAFTED_LOG, PLAIN_LOG], ids=["drafted", "plain"])
def test_the_schema_is_that_of_a_public_log(log):
    assert all(schema_of(json.loads(line)) == ANSWER for line in log.read_text().splitlines())


def spec_bench_speed(lines: list[dict]) -> tuple[float, float]:
    """(tokens/s, mean accepted tokens) as Spec-Bench's evaluation/speed.py defines them for a drafting method."""
    choices = [line["choices"][0] for line in lines]
    speeds = [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices]
    return float(np.mean(speeds)), float(np.mean(sum((choice["accept_lengths"] for choice in choices), [])))


def test_spec_benchs_definitions_give_this_projects_numbers(run, export, tmp_path):
    files = export(run, tmp_path)
    base, _ = spec_bench_speed(files["ar"])
    questions = run.questions[run.questions["label"] == "ar"]
    for arm in run.arms:
        speed, accepted = spec_bench_speed(files[arm.label])
        mine = run.questions[run.questions["label"] == arm.label]
        assert speed == pytest.approx(metrics.tokens_per_second(mine))
        assert speed / base == pytest.approx(metrics.speedup(mine, questions))
        assert accepted == pytest.approx(metrics.mean_accepted_tokens(run.turns[run.turns["label"] == arm.label]))


def test_every_arm_gives_the_same_text_in_the_order_of_the_questions(run, export, tmp_path):
    files = export(run, tmp_path)
    texts = {label: [line["choices"][0]["turns"] for line in lines] for label, lines in files.items()}
    assert all(found == texts["ar"] for found in texts.values())
    assert "</s>" not in str(texts) and all(text == text.strip() for turns in texts["ar"] for text in turns)
    ids = [line["question_id"] for line in files["ar"]]
    assert ids == sorted({turn.question_id for turn in run.arm("ar").turns})
    assert {len(turns) for turns in texts["ar"]} == {1, 2}


def test_rounds_and_counts_are_those_of_the_log(run, export, tmp_path):
    files = export(run, tmp_path)
    for arm in run.arms:
        rounds = [r.emitted for turn in arm.turns for r in turn.rounds]
        assert sum((line["choices"][0]["accept_lengths"] for line in files[arm.label]), []) == rounds
    assert {step for line in files["ar"] for step in line["choices"][0]["accept_lengths"]} == {1}
    choice, first = files["fixed-5"][0]["choices"][0], run.arm("fixed-5").turns[0]
    assert choice["decoding_steps"][0] == len(first.rounds) and choice["new_tokens"][0] == len(first.output_ids)
    assert choice["wall_time"][0] == pytest.approx(first.wall_ms / 1000)


@pytest.mark.parametrize(("label", "gamma"), [("fixed-5", 5), ("fixed-2", 2), ("gammatune-3", 3)])
def test_what_is_exported_can_be_imported(run, export, tmp_path, label, gamma):
    lines = export(run, tmp_path, "--arm", label)[label]
    table = import_answers(tmp_path / f"{label}.jsonl", build_schedule(label.partition("-")[0], gamma))
    for rate, seed in FILLS:
        rounds = play(fill_unknown(table, rate, seed), POLICIES[label.partition("-")[0]](gamma=gamma))
        assert sum(rounds, []) == sum((line["choices"][0]["accept_lengths"] for line in lines), [])


def test_repetitions_go_into_folders_of_their_own(export, tmp_path):
    run = read_run(store_run(tmp_path / "two", Recipe(questions=2, repetitions=2, slow=(1.0, 1.5))))
    files = export(run, tmp_path / "out", "--arm", "fixed-5")
    assert list(files) == ["run_1/fixed-5", "run_2/fixed-5"]
    speeds = [spec_bench_speed(lines)[0] for lines in files.values()]
    mine = run.questions[run.questions["label"] == "fixed-5"]
    assert speeds[0] > 1.3 * speeds[1]
    assert np.mean(speeds) == pytest.approx(metrics.tokens_per_second(mine))


def test_export_writes_the_same_bytes_twice_into_the_run_by_default(tmp_path, call):
    folder = store_run(tmp_path / "run", Recipe(questions=2, repetitions=1))
    change_done(folder, "fixed-2", status="wrong_output")
    contents = []
    for _ in range(2):
        code, out, _ = call("export", folder)
        contents.append({file.name: file.read_bytes() for file in (folder / "answers").iterdir()})
    assert contents[0] == contents[1] and "fixed-2.jsonl" not in contents[0]
    assert len({line["answer_id"] for file in contents[0].values() for line in map(json.loads, file.splitlines())}) == 6 * 4
    assert code == 0 and "1 arm left out: fixed-2 (wrong_output)." in out


def test_export_refuses_what_it_cannot_write(run, tmp_path, heuristic, call):
    assert "demo has no finished arm fixed-77" in refused(call("export", run.path, "--arm", "fixed-77"))
    assert "holds no run.json" in refused(call("export", tmp_path))
    random = store_run(tmp_path / "random", Recipe(questions=1, repetitions=1, facts={"random_weights": True}))
    assert "random has random weights" in refused(call("export", random))
    (tmp_path / "file").write_text("")
    log = write_log(tmp_path / "log.jsonl", draw_table(0), heuristic)
    for words in (["import", log, "--max-new-tokens", 90], ["export", run.path]):
        error = refused(call(*words, "--out", tmp_path / "file" / "out.parquet"))
        assert f"Cannot write {tmp_path / 'file'}" in error and "--out" in error


def test_every_schedule_on_offer_can_be_built():
    assert {"hf_heuristic", "fixed", "gammatune", "ucb"} <= set(schedule_names())
    assert not {"ar", "oracle", "gammatune_plus", "sglang_walk"} & set(schedule_names())
    assert all(build_schedule(name).policy == POLICIES[name]() for name in schedule_names())


@pytest.fixture(scope="module")
def public_table():
    return import_answers(DRAFTED_LOG, build_schedule("hf_heuristic"))


@needs_log
def test_the_public_log_replays_to_itself(public_table):
    lines = [json.loads(line)["choices"][0] for line in DRAFTED_LOG.read_text().splitlines()]
    rounds = play(fill_unknown(public_table, 0.72, 2), POLICIES["hf_heuristic"](gamma=5, full="planned"))
    assert [len(lengths) for lengths in rounds] == sum((line["decoding_steps"] for line in lines), [])
    assert sum(rounds, []) == sum((line["accept_lengths"] for line in lines), [])


@needs_log
def test_the_public_log_in_numbers(public_table):
    assert (len(public_table.turns), public_table.tokens) == (160, 43_139)
    assert {turn.task for turn in public_table.turns} == {"mt_bench"}
    assert [turn.question_id for turn in public_table.turns if turn.finish == "length"] == [92]
    assert estimate_match_rate(public_table) == pytest.approx(0.724, abs=0.001)


def headline(table: AcceptanceTable, rate: float, cost: float = 12.0) -> float:
    """GammaTune over mean fixed: tokens per time over starting gammas, a target step costing `cost` draft steps."""
    turns = prepare(fill_unknown(table, rate))

    def speed(name: str, gamma: int) -> float:
        played = replay(turns, POLICIES[name](gamma=gamma))
        return table.tokens / (played.rounds * cost + played.drafted.sum())

    starts = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24]
    return np.mean([speed("gammatune", g) for g in starts]) / np.mean([speed("fixed", g) for g in starts])


@needs_log
def test_gammatune_gains_thirteen_percent_over_mean_fixed(public_table):
    assert headline(public_table, 1.0) == pytest.approx(1.09, abs=0.005)
    assert headline(public_table, estimate_match_rate(public_table)) == pytest.approx(1.13, abs=0.005)
    assert headline(public_table, 0.0) == pytest.approx(1.20, abs=0.005)


@needs_log
def test_other_schedules_contradict_the_public_log():
    choice = json.loads(DRAFTED_LOG.read_text().splitlines()[0])["choices"][0]
    place = next(place for place, emitted in enumerate(choice["accept_lengths"], start=1) if emitted > 6)
    number = place - choice["decoding_steps"][0]
    found = f"round {number} of turn 2 of question 81 accepted 6 draft tokens, more than the 5 planned"
    with pytest.raises(UserError, match=found):
        import_answers(DRAFTED_LOG, build_schedule("fixed", 5))
    with pytest.raises(UserError, match="give the file of a run with a draft model"):
        import_answers(PLAIN_LOG, build_schedule("hf_heuristic"))
