"""The commands that record, and those that replay, as a user calls them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from replay.made_tables import contents, draw_table, make_turn

from gammatune.files import write_json
from gammatune.policies import POLICIES
from gammatune.replay.prices import Drafting, Price, PriceList, from_ratio, prices_to_json
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable, read_table, write_table
from gammatune.studies.headline import METRICS, replay_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the table of ten questions."""
    path = tmp_path_factory.mktemp("made")
    write_table(draw_table(11, questions=10), path / "acceptance.parquet")
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A table with unknown positions and without signals."""
    path = tmp_path_factory.mktemp("imported") / "log.parquet"
    turns = [make_turn("110?11?0110?", watched=False, question_id=number) for number in range(4)]
    write_table(AcceptanceTable(turns, {"source": "log.jsonl"}), path)
    return path


def test_headline_prints_the_numbers_of_the_study(folder, call):
    code, out, err = call("headline", folder, "--cost-ratio", 9, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == ["ar", "fixed", "oracle", *(name for name in POLICIES if name not in ("ar", "fixed", "oracle"))]
    table = read_table(folder / "acceptance.parquet")
    speeds = replay_all(build_bench(table, from_ratio(9)), {name: rule() for name, rule in POLICIES.items()})
    for name, numbers in found.items():
        assert list(numbers) == list(METRICS)
        assert numbers == {metric: speeds.ratio(name, metric) for metric in METRICS}


def test_headline_as_text_has_both_tables_and_the_claims(folder, call):
    code, out, err = call("headline", folder / "acceptance.parquet", "--cost-ratio", 9, "policy=[gammatune,gammatune_plus]")
    assert code == 0, err
    assert "paper's claim" in out and "1.15 ± 0.05" in out and "1.16 ± 0.03" in out
    assert all(word in out for word in ("RAG", "QA", "overall", "over tuned fixed", "Best fixed gamma in hindsight: "))
    assert out.count("GammaTune+ ") >= 2 and "SVIP" not in out


def test_settings_reach_the_policy_wherever_they_are_written(folder, call):
    words = ["headline", folder, "policy=[gammatune]", "--json", "--cost-ratio", 9, "policy.gammatune.eta=1.0"]
    changed, plain = (json.loads(call(*each)[1]) for each in (words, words[:-1]))
    assert changed["fixed"] == plain["fixed"] and changed["gammatune"] != plain["gammatune"]


def test_measured_prices_beside_the_table_are_found(call, tmp_path):
    write_table(draw_table(11, questions=10), tmp_path / "acceptance.parquet")
    steps = Drafting(Price(1.0)), Drafting(Price(2.0))
    curve = PriceList(*steps, [Price(9.0)], facts={"pair": "made"})
    write_json(tmp_path / "prices.json", prices_to_json(curve))
    words = ["policy=[gammatune,svip]", "--json"]
    measured = json.loads(call("headline", tmp_path, *words)[1])
    assert measured == json.loads(call("headline", tmp_path, "--prices", tmp_path / "prices.json", *words)[1])
    assumed = json.loads(call("headline", tmp_path, "--cost-ratio", 9, *words)[1])
    assert measured["gammatune"] == assumed["gammatune"]
    assert measured["svip"]["over_mean_fixed"] < assumed["svip"]["over_mean_fixed"]


def test_drafters_compares_tables_under_the_policies_that_are_named(folder, call, tmp_path):
    turns = [
        replace(turn, trace=replace(turn.trace, signals=None, continuations=None))
        for turn in read_table(folder / "acceptance.parquet").turns
    ]
    (tmp_path / "own").mkdir()
    write_table(
        AcceptanceTable(turns, {"drafter": {"name": "lookup"}, "forwards_per_token": 0}),
        tmp_path / "own" / "acceptance.parquet",
    )
    words = [
        "drafters",
        folder,
        tmp_path / "own",
        "--cost-ratio",
        9,
        "--csv",
        tmp_path / "all.csv",
        "policy=[fixed,gammatune_plus]",
    ]
    code, out, err = call(*words)
    assert code == 0, err
    assert "10 questions (all tables hold the same answers)" in out and "no forwards" in out and "By task:" in out
    with (tmp_path / "all.csv").open() as lines:
        pairings = {(row["drafter"], row["policy"]) for row in csv.DictReader(lines)}
    assert pairings == {("draft model", "fixed"), ("draft model", "gammatune_plus"), ("prompt lookup", "fixed")}
    code, out, err = call("drafters", folder, "--cost-ratio", 9)
    assert code == 2 and "name the tables of two drafters or more" in err


def test_a_table_whose_name_begins_like_a_setting_is_a_table(folder, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turns = read_table(folder / "acceptance.parquet").turns
    write_table(AcceptanceTable(turns, {"drafter": {"name": "own"}}), Path("policies"))
    code, out, err = call("drafters", folder, "policies", "--cost-ratio", 9, "policy=[fixed]")
    assert code == 0 and "own" in out, err


def test_headline_of_an_imported_log_gives_bounds(imported, call):
    code, out, err = call("headline", imported, "--cost-ratio", 12, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {"gammatune", "oracle", "hf_heuristic"} <= set(found) and not {"svip", "gammatune_plus"} & set(found)
    assert all(list(n) == list(METRICS) and list(n["over_oracle"]) == ["lower", "mean", "upper"] for n in found.values())
    text = call("headline", imported, "--cost-ratio", 12, "policy=[gammatune]")[1]
    assert text.startswith("Each cell: every unknown position a mismatch / at the estimated rate / a match.")


def test_sweep_prints_the_winner_and_writes_every_point(folder, call, tmp_path):
    words = ["policy.gammatune.eta=0.1,0.5,0.9", "policy.gammatune.delta=1,2"]
    code, out, err = call("sweep", folder, "--cost-ratio", 9, *words, "--csv", tmp_path / "new" / "grid.csv")
    assert code == 0, err
    with (tmp_path / "new" / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert list(rows[0]) == ["eta", "delta", "tuning_tokens_per_second", "reporting_tokens_per_second"]
    assert f"Winner: policy.gammatune.eta={rows[0]['eta']} policy.gammatune.delta={rows[0]['delta']}" in out
    assert "6 settings" in out and "GammaTune with its defaults: " in out and "the target alone: " in out


WRONG = {
    "no table": (["headline", "none.parquet", "--cost-ratio", 9], "There is no acceptance table at none.parquet: make one"),
    "a folder without one": (["headline", ".", "--cost-ratio", 9], "There is no acceptance table at acceptance.parquet"),
    "no prices": (["headline", "TABLE"], "No prices: give --prices FILE"),
    "no price file": (
        ["headline", "TABLE", "--prices", "none.json"],
        "none.json cannot be read (No such file or directory): give a file made by",
    ),
    "an impossible ratio": (["sweep", "TABLE", "--cost-ratio", 0, "policy.fixed.gamma=1"], "above 0"),
    "an unknown policy": (["headline", "TABLE", "--cost-ratio", 9, "policy=gamatune"], "policy=gamatune is not known"),
    "an unknown field": (
        ["headline", "TABLE", "--cost-ratio", 9, "policy=[gammatune]", "policy.gammatune.eat=1"],
        "has no setting eat",
    ),
    "a watching policy on a log": (
        ["headline", "LOG", "--cost-ratio", 9, "policy=[svip]"],
        "SVIP watches the draft, but this table has no draft signals",
    ),
    "a sweep without a grid": (["sweep", "TABLE", "--cost-ratio", 9], "A grid is over one policy's fields"),
    "a sweep of a log": (["sweep", "LOG", "--cost-ratio", 9, "policy.fixed.gamma=1"], "match of some positions is unknown"),
    "a csv that cannot be written": (
        ["sweep", "TABLE", "--cost-ratio", 9, "policy.fixed.gamma=1,2", "--csv", "/dev/null/grid.csv"],
        "Cannot write /dev/null/grid.csv (File exists): name another file with --csv.",
    ),
    "recording a sample": (["record", "model_pair=tiny-random", "decode=sample"], "exists for greedy decoding only"),
    "recording with a typo": (["record", "modelpair=tiny-random"], "modelpair"),
    "recording nothing after a wrong token": (
        ["record", "model_pair=tiny-random", "--gamma-max", 0],
        "argument --gamma-max: 0 is no whole number from 1 to 120; see gammatune record --help.",
    ),
    "known answers that are not there": (
        ["record", "model_pair=tiny-random", "--known", "none.jsonl"],
        "Cannot read the known answers none.jsonl",
    ),
}


def test_wrong_input_is_one_sentence_and_code_2(folder, imported, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, (words, sentence) in WRONG.items():
        code, out, error = call(*({"TABLE": folder, "LOG": imported}.get(word, word) for word in words))
        assert (code, out) == (2, "") and sentence in error, kind
        assert error.count("\n") == 1 and error.endswith(".\n"), kind


def test_record_makes_a_table_that_headline_and_sweep_read(small, call, tmp_path):
    code, out, err = call("record", *small, "--out", tmp_path / "tables", "--gamma-max", 16)
    assert code == 0, err
    path = Path(out.strip())
    assert path.parent.parent == tmp_path / "tables" and path.name == "acceptance.parquet"
    table = read_table(path)
    assert [turn.question_id for turn in table.turns] == [9, 2, 5, 5] and table.gamma_max == 16
    assert call("record", *small, "--out", tmp_path / "tables", "--gamma-max", 16)[:2] == (0, out)
    assert call("headline", path.parent, "--cost-ratio", 6)[0] == 0
    code, _, error = call("sweep", path.parent, "--cost-ratio", 6, "policy.fixed.gamma=1,2")
    assert code == 2 and "one question per task" in error


def test_record_with_known_answers_of_a_run(small, make_config, call, tmp_path):
    from gammatune.runs.runner import Runner

    runner = Runner(make_config(*small, "policy=[fixed]", f"results={tmp_path / 'runs'}"))
    runner.run()
    known = runner.folder.cells[1].turns_file
    paths = [
        Path(call("record", *small, "--out", tmp_path / name, *words)[1].strip())
        for name, words in (("plain", []), ("known", ["--known", known]))
    ]
    plain, confirmed, own = (read_table(path) for path in (*paths, runner.folder.path / "acceptance.parquet"))
    assert contents(plain) == contents(confirmed) == contents(own)
    assert plain.facts == confirmed.facts == own.facts
