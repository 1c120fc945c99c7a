"""Bounds of an imported log: derived, stored, read back, shown; what is damaged is refused in one sentence."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from report.stored_study import LOGGED, RATIOS, draw_study_table, import_log, store_bounded_log

from gammatune import cli
from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.replay.simulate import fill_unknown, prepare, replay
from gammatune.replay.table import write_table
from gammatune.studies import bounds
from gammatune.studies.headline import FILLS, METRICS, STARTS
from gammatune.studies.importers.specbench import estimate_match_rate

CELL = re.compile(r"\d+\.\d\d / \d+\.\d\d / \d+\.\d\d")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return import_log(tmp_path_factory.mktemp("log") / "log.jsonl")


@pytest.fixture(scope="module")
def stored(table, tmp_path_factory):
    return store_bounded_log(tmp_path_factory.mktemp("reference") / "made", table)


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of the stored folder that a test may damage."""
    for name in bounds.FILES:
        (tmp_path / name).write_bytes((stored / name).read_bytes())
    return tmp_path


def mean_speed(table, policy, ratio: float) -> float:
    """Tokens per draft step, the mean over answers (each is its own question here). A round costs draft steps + ratio."""
    logs = replay(prepare(table), policy, keep_rounds=True).logs
    prices = [sum(r.draft_forwards + ratio for r in rounds) for rounds in logs]
    return float(np.mean([turn.tokens / price for turn, price in zip(table.turns, prices, strict=True)]))


def over_alone(table, policy, ratio: float) -> float:
    return mean_speed(table, policy, ratio) / mean_speed(table, POLICIES["ar"](), ratio)


@pytest.mark.parametrize(("name", "ratio", "start"), [("fixed", 4.0, 3), ("gammatune", 12.0, 8)])
def test_starts_by_hand(stored, table, name, ratio, start):
    row = bounds.read_bounds(stored)[0]["starts"].set_index(["ratio", "policy", "start"]).loc[(ratio, name, start)]
    policy, rate = POLICIES[name](gamma=start), estimate_match_rate(table)
    between = [over_alone(fill_unknown(table, rate, seed), policy, ratio) for seed in range(FILLS)]
    assert row["lower"] == pytest.approx(over_alone(fill_unknown(table, 0.0), policy, ratio), rel=1e-5)
    assert row["mean"] == pytest.approx(np.mean(between), rel=1e-5)
    assert row["upper"] == pytest.approx(over_alone(fill_unknown(table, 1.0), policy, ratio), rel=1e-5)


def test_the_headline_by_hand(stored, table):
    frame = bounds.read_bounds(stored)[0]["headline"].set_index(["ratio", "policy", "metric"])
    filled = fill_unknown(table, 1.0)
    means = {n: np.mean([mean_speed(filled, POLICIES[n](gamma=g), 4.0) for g in STARTS]) for n in ("gammatune", "fixed")}
    assert frame.loc[(4.0, "gammatune", "over_mean_fixed"), "upper"] == pytest.approx(
        means["gammatune"] / means["fixed"], rel=1e-5
    )
    assert (frame.xs("over_mean_fixed", level="metric").xs("fixed", level="policy")[["lower", "mean", "upper"]] == 1).all(
        axis=None
    )


def test_every_policy_ratio_start_and_metric_has_its_row(stored):
    frames, source = bounds.read_bounds(stored)
    assert len(frames["starts"]) == len(RATIOS) * len(LOGGED) * len(STARTS)
    assert len(frames["headline"]) == len(RATIOS) * len(LOGGED) * len(METRICS)
    assert (source["source"], source["schedule"]) == ("log.jsonl", "fixed-3")


def test_views_show_lower_estimate_upper(stored, tmp_path):
    frames, source = bounds.read_bounds(stored)
    assert len(bounds.write_bounds(stored, tmp_path / "out")) == 6
    for name, frame in frames.items():
        view = bounds.bounds_view(frame, bounds.KEYS[name])
        cells = view.drop(columns=["T_target / T_draft", "policy"]).to_numpy().ravel()
        assert len(cells) == len(frame) and all(CELL.fullmatch(cell) for cell in cells)
        assert pd.read_csv(tmp_path / "out" / f"{name}.csv").equals(frame)
    row = frames["starts"].query("ratio == 4 and policy == 'gammatune' and start == 2").iloc[0]
    text = f"{row['lower']:.2f} / {row['mean']:.2f} / {row['upper']:.2f}"
    view = bounds.bounds_view(frames["starts"], bounds.KEYS["starts"]).set_index(["T_target / T_draft", "policy"])
    assert view.loc[("4", "GammaTune"), "2"] == text
    assert f"{source['unknown']:.1%} unknown positions" in (tmp_path / "out" / "starts.md").read_text()


def test_the_verb_stores_what_can_be_read_back(stored, table, tmp_path, capsys):
    write_table(table, tmp_path / "acceptance.parquet")
    words = ["policy=[gammatune,hf_heuristic]", "--cost-ratios", "4", "--out", str(tmp_path / "out")]
    assert cli.main(["bounds", str(tmp_path), *words]) == 0, capsys.readouterr().err
    frames, source = bounds.read_bounds(tmp_path / "out")
    expected, of_all = bounds.read_bounds(stored)
    assert source == of_all
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(frame, expected[name].query("ratio == 4"), check_dtype=False)


def test_a_table_without_unknown_matches_needs_no_bounds(tmp_path, capsys):
    write_table(draw_study_table(questions=1), tmp_path / "acceptance.parquet")
    assert cli.main(["bounds", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "use headline" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def change_row(text: str) -> str:
    """The first row's last number becomes a word."""
    header, first, *rest = text.splitlines()
    return "\n".join([header, first.rpartition(",")[0] + ",much", *rest])


def without(fact: str):
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != fact})


DAMAGES = {
    "cut": ("source.json", lambda text: text[:40]),
    "no object": ("source.json", lambda text: "[]"),
    "no rate": ("source.json", without("rate")),
    "a word for a number": ("source.json", lambda text: re.sub(r'"rate": [\d.]+', '"rate": "high"', text)),
    "empty": ("starts.csv", lambda text: ""),
    "header alone": ("starts.csv", lambda text: text.splitlines()[0]),
    "other columns": ("starts.csv", lambda text: text.replace("lower", "low")),
    "a word": ("headline.csv", change_row),
    "a gap": ("headline.csv", lambda text: re.sub(r",[\d.]+\n", ",\n", text, count=1)),
    "a row twice": ("headline.csv", lambda text: text + text.splitlines()[1] + "\n"),
    "a row missing": ("headline.csv", lambda text: "".join(text.splitlines(keepends=True)[:-1])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_in_one_sentence(copy, damage):
    name, change = DAMAGES[damage]
    before = (copy / name).read_text()
    (copy / name).write_text(change(before))
    assert (copy / name).read_text() != before
    with pytest.raises(UserError, match=r"gammatune bounds`\.$") as refused:
        bounds.write_bounds(copy, copy / "out")
    assert str(copy) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", bounds.FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        bounds.read_bounds(copy)


def test_one_damaged_folder_does_not_hide_the_others(stored, tmp_path, capsys):
    """The damaged one comes first."""
    for folder, kept in (("a_damaged", 60), ("sound", None)):
        (tmp_path / "reference" / folder).mkdir(parents=True)
        for name in bounds.FILES:
            (tmp_path / "reference" / folder / name).write_bytes((stored / name).read_bytes()[:kept])
    places = {name: tmp_path / name for name in ("reference", "runs", "acceptance", "out")}
    code = cli.main(["paper-tables", *(word for name, place in places.items() for word in (f"--{name}", str(place)))])
    shown = capsys.readouterr()
    assert code == 2 and shown.out == "sound: 8 files, bounds\n"
    assert shown.err.count("\n") == 1 and "a_damaged" in shown.err
    assert (tmp_path / "out" / "figures" / "sound" / "bounds.svg").is_file()
