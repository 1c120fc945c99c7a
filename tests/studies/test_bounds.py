"""Bounds of an imported log: derived, stored, read back, shown; what is damaged is refused in one sentence."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from report.stored_study import LOGGED, RATIOS, draw_study_table, made_bounds, made_log

from gammatune import cli
from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.policies import POLICIES
from gammatune.replay.prices import Drafting, Price, PriceList, prices_to_json
from gammatune.replay.simulate import fill_unknown, prepare, replay
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, write_table
from gammatune.report import notes, views
from gammatune.studies.bounds import FILES, KEYS, estimate_match_rate, read_bounds
from gammatune.studies.headline import FILLS, METRICS, STARTS
from gammatune.traces import TextTrace

CELL = re.compile(r"\d+\.\d\d / \d+\.\d\d / \d+\.\d\d")


@pytest.fixture(scope="module")
def table():
    return made_log()


@pytest.fixture(scope="module")
def stored():
    return made_bounds()


def mean_speed(table, policy, ratio: float) -> float:
    """Tokens per draft step, the mean over answers (each is its own question here). A round costs draft steps + ratio."""
    logs = replay(prepare(table), policy, keep_rounds=True).logs
    prices = [sum(r.forwards + ratio for r in rounds) for rounds in logs]
    return float(np.mean([turn.tokens / price for turn, price in zip(table.turns, prices, strict=True)]))


def over_alone(table, policy, ratio: float) -> float:
    return mean_speed(table, policy, ratio) / mean_speed(table, POLICIES["ar"](), ratio)


@pytest.mark.parametrize(("name", "ratio", "start"), [("fixed", 4.0, 3), ("gammatune", 12.0, 8)])
def test_starts_by_hand(stored, table, name, ratio, start):
    row = read_bounds(stored).starts.set_index(["ratio", "policy", "start"]).loc[(ratio, name, start)]
    policy, rate = POLICIES[name](gamma=start), estimate_match_rate(table)
    between = [over_alone(fill_unknown(table, rate, seed), policy, ratio) for seed in range(FILLS)]
    assert row["lower"] == pytest.approx(over_alone(fill_unknown(table, 0.0), policy, ratio), rel=1e-5)
    assert row["mean"] == pytest.approx(np.mean(between), rel=1e-5)
    assert row["upper"] == pytest.approx(over_alone(fill_unknown(table, 1.0), policy, ratio), rel=1e-5)


def test_the_headline_by_hand(stored, table):
    frame = read_bounds(stored).headline.set_index(["ratio", "policy", "metric"])
    filled = fill_unknown(table, 1.0)
    means = {n: np.mean([mean_speed(filled, POLICIES[n](gamma=g), 4.0) for g in STARTS]) for n in ("gammatune", "fixed")}
    assert frame.loc[(4.0, "gammatune", "over_mean_fixed"), "upper"] == pytest.approx(
        means["gammatune"] / means["fixed"], rel=1e-5
    )
    assert (frame.xs("over_mean_fixed", level="metric").xs("fixed", level="policy")[["lower", "mean", "upper"]] == 1).all(
        axis=None
    )


def test_the_ratio_over_the_heuristic_by_hand(stored, table):
    """From its own start, 5, on either side of the unknown."""
    frame = read_bounds(stored).headline.set_index(["ratio", "policy", "metric"])
    for end, rate in (("lower", 0.0), ("upper", 1.0)):
        filled = fill_unknown(table, rate)
        adaptive = np.mean([mean_speed(filled, POLICIES["gammatune"](gamma=g), 12.0) for g in STARTS])
        expected = adaptive / mean_speed(filled, POLICIES["hf_heuristic"](gamma=5), 12.0)
        assert frame.loc[(12.0, "gammatune", "over_heuristic"), end] == pytest.approx(expected, rel=1e-5)


def test_every_policy_ratio_start_and_metric_has_its_row(stored):
    found = read_bounds(stored)
    assert len(found.starts) == len(RATIOS) * len(LOGGED) * len(STARTS)
    assert len(found.headline) == len(RATIOS) * len(LOGGED) * len(METRICS)
    assert (found.source["source"], found.source["schedule"]) == ("log.jsonl", "fixed-3")


def test_views_show_lower_estimate_upper(stored):
    found = read_bounds(stored)
    tables = views.bounds_tables(found)
    for name in KEYS:
        frame, view = getattr(found, name), tables[name].view
        cells = view.drop(columns=["T_target / T_draft", "policy"]).to_numpy().ravel()
        assert len(cells) == len(frame) and all(CELL.fullmatch(cell) for cell in cells)
        assert tables[name].numbers.equals(frame)
    row = found.starts.query("ratio == 4 and policy == 'gammatune' and start == 2").iloc[0]
    text = f"{row['lower']:.2f} / {row['mean']:.2f} / {row['upper']:.2f}"
    assert tables["starts"].view.set_index(["T_target / T_draft", "policy"]).loc[("4", "GammaTune"), "2"] == text
    assert f"{found.source['unknown']:.1%} unknown positions" in notes.describe_bounds(found.source)


def test_the_command_stores_what_can_be_read_back(stored, table, tmp_path, capsys):
    write_table(table, tmp_path / "acceptance.parquet")
    words = ["policy=[gammatune,hf_heuristic]", "--cost-ratios", "4", "--out", str(tmp_path / "out")]
    assert cli.main(["bounds", str(tmp_path), *words]) == 0, capsys.readouterr().err
    found, expected = read_bounds(tmp_path / "out"), read_bounds(stored)
    assert found.source == expected.source
    for name in KEYS:
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name).query("ratio == 4"), check_dtype=False)


def test_prices_beside_the_table_take_the_place_of_assumed_ratios(table, tmp_path, call):
    """They may cost verification otherwise than a plain step, and a prefill: no ratio says that."""
    write_table(table, tmp_path / "acceptance.parquet")
    draft, interval = Drafting(Price(2.0)), {"ms": 2.0, "low": 1.5, "high": 2.5}
    curve = PriceList(draft, draft, [Price(23.0), *[Price(20.0)] * 24], prefill_both=Price(9.0))
    curve.facts = {"prices_95": {"T_draft": interval}, "plain": {"source": "alone.jsonl"}}
    write_json(tmp_path / "prices.json", prices_to_json(curve))
    words = ("bounds", tmp_path, "policy=[gammatune,hf_heuristic]", "--out", tmp_path / "out")
    assert call(*words)[0] == 0
    found = read_bounds(tmp_path / "out")
    assert set(found.headline["ratio"]) == set(found.starts["ratio"]) == {11.5}
    assert found.source["own_prices"] == {"ratio": 11.5, **curve.facts}
    row = found.starts.set_index(["policy", "start"]).loc[("fixed", 3)]
    bench = build_bench(fill_unknown(table, 1.0), curve)
    alone = bench.speeds(POLICIES["ar"]()).mean()
    assert row["upper"] == pytest.approx(bench.speeds(POLICIES["fixed"](gamma=3)).mean() / alone, rel=1e-5)
    caption = notes.describe_bounds(found.source)
    assert "The ratio 11.5 is that of the log's own wall times (95 %): T_draft 2.00 [1.50, 2.50] ms." in caption
    assert call(*words, "--cost-ratios", 4)[0] == 0
    assert list(dict.fromkeys(read_bounds(tmp_path / "out").starts["ratio"])) == [4.0, 11.5]


def test_the_rate_counts_tokens_after_a_match():
    def make(*matches):
        traces = [TextTrace(np.array(m, np.int8), None, np.zeros(0, np.int8), np.zeros(0, bool), None) for m in matches]
        return AcceptanceTable([AcceptanceTurn(1, "", "", 0, 0, 99, "eos", np.zeros(0), trace) for trace in traces])

    assert estimate_match_rate(make([1, 1, 1, 0, 0, 0, 1, -1], [0, 1, 0])) == 2 / 4
    assert estimate_match_rate(make([1, -1, 0, 0, 1, -1, 0])) == 2 / 5
    with pytest.raises(UserError, match="No position of this table"):
        estimate_match_rate(make([-1]))


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


def age(folder):
    """As folders were stored before they had checksums."""
    source = json.loads((folder / "source.json").read_text())
    for name in ("schema", "checksum", "sha256 of"):
        del source[name]
    (folder / "source.json").write_text(json.dumps(source))
    assert read_bounds(folder).source == source
    return folder


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


def test_damaged_and_missing_files_are_refused_in_one_sentence(stored, tmp_path):
    for damage, (name, change) in (DAMAGES | {f"no {file}": (file, None) for file in FILES}).items():
        folder = age(shutil.copytree(stored, tmp_path / damage))
        before = (folder / name).read_text()
        if change:
            assert change(before) != before
            (folder / name).write_text(change(before))
        else:
            (folder / name).unlink()
        with pytest.raises(UserError, match=r"gammatune bounds`\.$") as refused:
            read_bounds(folder)
        assert str(folder) in str(refused.value) and "\n" not in str(refused.value), damage
        assert "checksum" not in str(refused.value)


def test_a_changed_digit_is_found_out_in_every_file(stored, tmp_path):
    for name in FILES:
        folder = shutil.copytree(stored, tmp_path / name)
        text = (folder / name).read_text()
        (folder / name).write_text(re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), text))
        with pytest.raises(
            UserError, match=f"{name} is damaged or was changed .its checksum does not fit.*gammatune bounds"
        ):
            read_bounds(folder)
