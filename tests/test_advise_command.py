"""`gammatune advise` as a user calls it: on a table, and on a pair from a folder elsewhere, stopped and taken up again."""

import json
import shlex
from pathlib import Path

import pytest
from replay.made_tables import draw_table, make_turn
from report.stored_study import draw_study_table, make_curve, store_study
from runs.tracing import count_traces

from gammatune.commands.advise import name_models
from gammatune.files import read_json, write_json
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio, prices_to_json
from gammatune.replay.table import AcceptanceTable, read_table, write_table
from gammatune.studies.advise import PriceNote, advise

TINY = ("advise", "model_pair=tiny-random", "runtime=eager", "decode.max_new_tokens=8")
QUICK = (*TINY, "policy=[fixed,gammatune]")
QUESTIONS = [
    {"question_id": n, "category": ["qa", "rag", "coding"][n % 3], "turns": [f"Why is {n} odd or even?"]} for n in range(15)
]

RATIO = {"speedup": float, "interval": list}
POLICY = {"policy": str, "title": str, "settings": dict}
FORM = {
    "schema": int,
    "source": {"kind": str, "name": str, "table": str, "questions": int, "turns": int, "tokens": int, "tasks": [str]}
    | {"signals": bool, "complete": bool},
    "prices": {"ratio": float, "source": str, "machine": (str, type(None)), "warnings": [str]},
    "pays": bool,
    "verdict": str,
    **POLICY,
    **RATIO,
    "untuned": POLICY | RATIO,
    "best_fixed": {"gamma": int} | RATIO,
    "break_even": {"gamma": int, "acceptance": float, "found": float, "margin": float},
    "ranking": [POLICY | {"tuned": bool} | RATIO],
    "by_task": [{"task": str, "questions": int, "speedup": float, "best_gamma": int, "best_fixed": float}],
    "sensitivity": [{"draft_price": float, "policy_speedup": float, "best_gamma": int, "best_fixed_speedup": float}],
    "engines": [{"engine": str, "version": str, "line": str, "settings": dict, "absent": (str, type(None))} | RATIO],
    "drafters": [{"drafter": str, "name": str} | POLICY | RATIO],
    "warnings": [str],
}
FORM["sensitivity"][0]["pays"] = bool
FORM["engines"][0]["policy"] = (str, type(None))


def find_misfit(found, form, place: str = "") -> str:
    """Where JSON has not the form, empty where it has."""
    if isinstance(form, dict):
        if not isinstance(found, dict) or found.keys() != form.keys():
            return f"{place}: {found}"
        return next((told for key in form if (told := find_misfit(found[key], form[key], f"{place}.{key}"))), "")
    if isinstance(form, list):
        return next((told for each in found if (told := find_misfit(each, form[0], f"{place}[]"))), "")
    return "" if isinstance(found, form) else f"{place}: {found!r}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, far from the checkout, without Spec-Bench."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECBENCH_PATH", raising=False)
    monkeypatch.setattr("gammatune.commands.advise.has_specbench", lambda: False)
    Path("prompts.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))


def last_line(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def stored_advice(folder: str) -> dict:
    (file,) = Path("results/advice").glob(f"{folder}-*/advice.json")
    return read_json(file, "remake it")


def test_a_table_is_answered_in_text_and_json(call):
    store_study(Path("study"), draw_study_table())
    code, out, err = call("advise", "--table", "study")
    assert code == 0, err
    found = last_line(out)
    assert not find_misfit(found, FORM)
    assert stored_advice("made") == found
    (text,) = Path("results/advice").glob("made-*/advice.md")
    assert out.startswith(text.read_text()) and str(text) in out
    page = text.with_name("report.html")
    assert str(page) in out and found["verdict"] in page.read_text()
    assert found["verdict"] in out and "## What to paste" in out and found["engines"][0]["line"] in out
    assert found["source"] == {
        "kind": "table",
        "name": "made",
        "table": "study/acceptance.parquet",
        "questions": 24,
        "turns": 30,
        "tokens": read_table(Path("study/acceptance.parquet")).tokens,
        "tasks": ["mt_bench", "translation", "qa", "math_reasoning"],
        "signals": True,
        "complete": True,
    }
    assert found["prices"]["source"] == "the table's" and found["prices"]["machine"] == "Test CPU"


def test_its_numbers_are_those_of_the_study(call):
    store_study(Path("study"), draw_study_table())
    found = last_line(call("advise", "--table", "study", "--json")[1])
    table = read_table(Path("study/acceptance.parquet"))
    advice = advise(table, make_curve(), PriceNote(""), {name: POLICIES[name]() for name in POLICIES})
    assert (found["policy"], found["speedup"]) == (advice.best.policy.name, round(advice.best.over_alone.value, 4))
    assert found["best_fixed"]["interval"] == [round(end, 4) for end in advice.fixed.over_alone[1:]]
    assert [each["speedup"] for each in found["ranking"]] == [round(r.over_alone.value, 4) for r in advice.ranking]
    assert found["pays"] == (found["interval"][0] > 1)


def test_json_alone_is_one_line(call):
    write_table(draw_table(11, questions=16), Path("acceptance.parquet"))
    code, out, err = call("advise", "--table", ".", "--cost-ratio", 9, "--json", "policy=[gammatune,svip]")
    assert code == 0, err
    assert out.count("\n") == 1 and not find_misfit(json.loads(out), FORM)
    assert {each["policy"] for each in json.loads(out)["ranking"]} == {"ar", "fixed", "gammatune", "svip"}
    assert json.loads(out)["prices"] == {
        "ratio": 9.0,
        "source": "assumed ratio",
        "machine": None,
        "warnings": ["T_target / T_draft = 9 is assumed, with every block verified at the price of one token."],
    }


def test_prices_of_another_machine_are_told_and_taken(call):
    write_table(draw_table(11, questions=16), Path("table.parquet"))
    curve = make_curve()
    curve.facts = {"device": "cpu", "provenance": {"device": "Abacus", "median_load": 9.0, "cores": 2}}
    write_json(Path("theirs.json"), prices_to_json(curve))
    code, out, err = call("advise", "--table", "table.parquet", "--prices", "theirs.json", "policy=[gammatune]")
    assert code == 0, err
    found = last_line(out)
    assert found["prices"]["source"] == "file theirs.json"
    assert any(told.startswith("The prices were measured on Abacus, this machine is ") for told in found["warnings"])
    assert any("The machine was shared while the prices were measured" in told for told in found["warnings"])
    assert "## Remarks" in out


def test_a_log_without_signals_is_answered_with_what_it_holds(call):
    turns = [make_turn("110?11?0110?" * 4, watched=False, question_id=number) for number in range(16)]
    write_table(AcceptanceTable(turns, {"source": "log.jsonl"}), Path("log.parquet"))
    code, out, err = call("advise", "--table", "log.parquet", "--cost-ratio", 12)
    assert code == 0, err
    found = last_line(out)
    assert not found["source"]["signals"] and not found["source"]["complete"]
    assert not {"svip", "p_min", "gammatune_plus"} & {each["policy"] for each in found["ranking"]}
    assert any("25.0% of the matches are unknown" in told for told in found["warnings"])


def test_a_pair_is_measured_recorded_and_answered(call, monkeypatch):
    code, out, err = call(*TINY, "tasks.path=prompts.jsonl")
    assert code == 0, err
    found = last_line(out)
    assert not find_misfit(found, FORM)
    assert found["source"]["kind"] == "pair" and found["source"]["questions"] == 15
    assert found["source"]["tasks"] == ["mt_bench", "qa", "rag"] and found["prices"]["source"] == "measured here"
    assert "The models' weights are random, so the advice means nothing." in found["warnings"]
    asked = {"model", "lookup", "suffix", "[lookup,model]", "[suffix,model]"}
    assert {each["drafter"] for each in found["drafters"]} == asked and "## Other drafters" in out
    (own,) = (each for each in found["drafters"] if each["drafter"] == "model")
    assert all(own[key] == found[key] for key in (*POLICY, *RATIO))
    (folder,) = Path("results/advice").iterdir()
    assert folder.name.startswith("tiny-random-prompts-")
    assert {file.name for file in folder.iterdir()} == {
        *("acceptance.parquet", "advice.json", "advice.md", "config.json", "lock", "prices.json", "provenance.json"),
        *("pieces.json", "report.html"),
    }
    # what is there is taken as it is: the same table, the same prices, the same advice
    prices, traced = (folder / "prices.json").read_bytes(), count_traces(monkeypatch)
    assert last_line(call(*TINY, "tasks.path=prompts.jsonl")[1]) == found
    assert traced == [] and (folder / "prices.json").read_bytes() == prices
    assert call("headline", folder, "policy=[gammatune]")[0] == 0


def test_an_interrupted_call_goes_on(call, monkeypatch):
    words = (*QUICK, "tasks.path=prompts.jsonl", "--cost-ratio", 9, "--json")
    with monkeypatch.context() as patch:
        count_traces(patch, stop_at=5)
        code, out, err = call(*words)
    assert (code, out) == (130, "") and "the same command continues from there" in err
    (parts,) = Path("results/advice").glob("*/parts")
    tasks = [read_table(part).turns[0].task for part in parts.iterdir()]
    assert sorted(tasks) == ["mt_bench", "mt_bench", "qa", "qa", "rag"] or len(set(tasks)) == 3
    traced = count_traces(monkeypatch)
    code, out, err = call(*words)
    assert code == 0, err
    assert len(traced) == 10 and not parts.exists() and last_line(out)["source"]["questions"] == 15


def test_when_the_time_is_over_it_answers_with_twelve_and_more_time_goes_on(call, monkeypatch):
    words = (*QUICK, "tasks.path=prompts.jsonl", "--cost-ratio", 9, "--json")
    traced = count_traces(monkeypatch)
    code, out, err = call(*words, "--minutes", "1e-9")
    assert code == 0, err
    short = last_line(out)
    assert short["source"]["questions"] == len(traced) == 12 and short["source"]["table"].endswith("partial.parquet")
    assert any(told.startswith("The time was over after 12 of 15 questions; the same command") for told in short["warnings"])
    assert {task["questions"] for task in short["by_task"]} == {2}
    whole = last_line(call(*words)[1])
    assert whole["source"]["questions"] == len(traced) == 15 and whole["source"]["table"].endswith("acceptance.parquet")
    assert not Path(short["source"]["table"]).exists()


def test_the_demo_is_asked_where_nothing_else_is_there(call):
    code, out, err = call(*QUICK, "--cost-ratio", 9, "--minutes", "1e-9", "--json")
    assert code == 0, err
    found = last_line(out)
    assert found["source"]["questions"] == 12 and "/tiny-random-demo-" in found["source"]["table"]
    assert any("too long for the pair" in told for told in found["warnings"])  # the tiny pair addresses 512 tokens


def test_a_drafter_without_signals(call):
    code, out, err = call(*TINY, "drafter=lookup", "tasks.path=prompts.jsonl", "--cost-ratio", 9, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["prices"]["ratio"] is None and not found["source"]["signals"]
    assert found["engines"] == [] and any("no draft model" in told for told in found["warnings"])


def test_models_are_called_as_engines_know_them(make_config):
    pair = make_config("model_pair=qwen2.5-coder-0.5b-1.5b").model_pair
    models = name_models(pair)
    assert (models.target, models.draft) == ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct")
    assert models.draft_file == "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    own = make_config("model_pair=vicuna-68m-7b", "model_pair.target.path=/models/v.gguf", "model_pair.draft.path=/models/d")
    models = name_models(own.model_pair)
    assert (models.target, models.target_file) == ("/models/v.gguf",) * 2
    assert (models.draft, models.draft_file) == ("/models/d", "DRAFT.gguf")
    tiny = name_models(make_config("model_pair=tiny-random").model_pair)
    assert (tiny.target, tiny.draft) == ("TARGET", "DRAFT")


WRONG = {
    "too few questions": ("model_pair=tiny-random tasks=demo tasks.limit=1", "there are 6: give more with tasks.limit"),
    "a small table": ("--table small.parquet --cost-ratio 9", "there are 3: give more with tasks.limit"),
    "no table": ("--table none --cost-ratio 9", "There is no acceptance table at none: make one"),
    "no prices": ("--table table.parquet", "No prices: give --prices FILE"),
    "no price file": ("--table table.parquet --prices none.json", "none.json cannot be read"),
    "an impossible ratio": ("--table table.parquet --cost-ratio 0", "0 is no number above 0"),
    "a ratio below": ("model_pair=tiny-random --cost-ratio=-3", "-3 is no number above 0"),
    "a pair and a table": (
        "--table table.parquet --cost-ratio 9 model_pair=tiny-random",
        "model_pair=tiny-random is not read with --table, which takes settings of policies alone: leave it out.",
    ),
    "time for a table": ("--table table.parquet --cost-ratio 9 --minutes 3", "--minutes is not read with --table"),
    "no time": ("model_pair=tiny-random --minutes 0", "0 is no number above 0"),
    "an unknown pair": ("model_pair=tiny-randm", "model_pair=tiny-randm is not known: choose one of "),
    "a pair that is not there": (
        "model_pair=vicuna-68m-7b model_pair.target.path=nowhere",
        "nowhere",
    ),
    "a malformed prompt": (f"{TINY[1]} tasks.path=bad.jsonl", "Line 2 of bad.jsonl lacks turns"),
    "no prompts": (f"{TINY[1]} tasks.path=none.jsonl", "The question file none.jsonl cannot be read"),
    "sampling": (f"{TINY[1]} decode=sample", "exists for greedy decoding only"),
    "an unknown policy": ("--table table.parquet --cost-ratio 9 policy=gamatune", "policy=gamatune is not known"),
    "a setting out of range": (
        "--table table.parquet --cost-ratio 9 policy=[fixed] policy.fixed.gamma=-1",
        "Fixed.gamma=-1 is out of range",
    ),
    "a setting of a run": (f"{TINY[1]} repetitions=3", "The command advise does not read repetitions"),
    "a folder that cannot be written": (
        "--table table.parquet --cost-ratio 9 policy=fixed --out /dev/null",
        "choose another folder with --out FOLDER.",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence_and_code_2(kind, call):
    write_table(draw_table(11, questions=16), Path("table.parquet"))
    write_table(draw_table(11, questions=3), Path("small.parquet"))
    lines = [json.dumps(QUESTIONS[0]), json.dumps({"question_id": 1, "category": "qa"})]
    Path("bad.jsonl").write_text("\n".join(lines))
    words, sentence = WRONG[kind]
    code, out, error = call("advise", *shlex.split(words))
    assert (code, out) == (2, "") and sentence in error, error
    assert error.count("\n") == 1 and error.endswith(".\n")
    assert not Path("results").exists()


def test_a_ratio_is_needed_by_nobody_who_has_prices(call):
    """Those of --cost-ratio go before the ones beside the table."""
    store_study(Path("study"), draw_study_table())
    found = last_line(call("advise", "--table", "study", "--cost-ratio", 5, "policy=fixed")[1])
    assert found["prices"]["ratio"] == from_ratio(5).ratio() == 5.0
