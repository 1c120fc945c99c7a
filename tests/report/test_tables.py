"""Tables say what the numbers are, whose they are, and what is missing."""

import csv
import json
import math

import pandas as pd
import pytest
from stored import Recipe, change_done, store_run

from gammatune.report import notes, views
from gammatune.report.names import arm_names
from gammatune.report.numbers import interval, number, plus_minus
from gammatune.report.results import position_table, results_table, timing_table
from gammatune.report.tables import Table, to_latex, write_tables
from gammatune.runs.store import read_run

GRID = ("ar", "fixed-1", "fixed-4", "gammatune-1", "gammatune-4")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run that no test may change."""
    return read_run(store_run(tmp_path_factory.mktemp("runs") / "demo_run", Recipe(questions=3)))


@pytest.fixture
def folder(tmp_path):
    """A run that a test may change."""
    return store_run(tmp_path / "demo_run", Recipe(questions=2, repetitions=1))


def test_results_have_a_row_per_task_and_arm_and_overall(sound):
    results = results_table(sound)
    assert list(dict.fromkeys(results["task"])) == ["mt_bench", "translation", "math_reasoning", "overall"]
    assert len(results) == 4 * 5
    assert set(results.loc[results["task"] == "overall", "questions"]) == {9}
    assert (results.loc[results["label"] == "ar", "speedup"] == 1.0).all()


def test_both_acceptance_rates_are_columns(sound):
    results = results_table(sound)
    drafting = results[results["label"] != "ar"]
    assert (drafting["acceptance_rate"] != drafting["acceptance_rate_per_question"]).any()
    view = views.details_view(results, arm_names(sound.arms))
    assert {"acceptance rate (pooled)", "acceptance rate (mean over questions)"} <= set(view.columns)


def test_summary_names_every_arm_and_fits_a_terminal(sound):
    text = notes.summary_table(sound)
    assert all(name in text for name in ("autoregressive", "fixed 2", "fixed 5", "GammaTune", "GammaTune+"))
    assert max(map(len, text.splitlines())) <= 120


def test_arm_summaries_are_plain_json(sound):
    summaries = notes.arm_summaries(sound)
    assert json.loads(json.dumps(summaries, allow_nan=False)) == summaries
    assert [s["policy"] for s in summaries] == ["ar", "fixed-2", "fixed-5", "gammatune-3", "gammatune_plus-3"]
    baseline = {"policy": "ar", "speedup": 1.0, "mean_accepted_tokens": 1.0, "acceptance_rate": None, "exact": True}
    assert summaries[0] == baseline
    assert isinstance(summaries[1]["speedup"], float)


def test_wrong_output_gives_no_number_and_is_named(folder):
    change_done(folder, "fixed-5", status="wrong_output", exact=False)
    run = read_run(folder)
    text = notes.summary_table(run)
    assert "1 arm left out: fixed-5 (wrong_output)." in text
    assert "fixed 5" not in text
    assert "1 arm left out: fixed-5 (wrong_output)." in notes.describe_run(run)
    assert "fixed-5" not in [s["policy"] for s in notes.arm_summaries(run)]


@pytest.mark.parametrize(
    ("facts", "broken", "sentence"),
    [({"random_weights": True}, None, "weights are random"), ({}, "ar", "autoregressive arm is missing")],
)
def test_no_speedup_where_none_may_be_formed(tmp_path, facts, broken, sentence):
    folder = store_run(tmp_path / "run", Recipe(questions=2, facts=facts))
    if broken:
        change_done(folder, broken, status="error")
    run = read_run(folder)
    assert all(s["speedup"] is None for s in notes.arm_summaries(run))
    assert sentence in notes.summary_table(run)
    assert "speedup" not in views.run_tables(run)


def test_exact_column_tells_ties_and_sampling_apart(folder):
    change_done(folder, "fixed-2", near_ties=2)
    change_done(folder, "fixed-5", exact=None)
    text = notes.summary_table(read_run(folder))
    assert "yes (2 near ties)" in text and "sampled" in text


def test_caption_carries_where_the_numbers_come_from(sound):
    caption = notes.describe_run(sound)
    for fact in (
        "smollm2-draft-135m",
        "eager",
        "Test CPU",
        "fp32",
        "gammatune 0.1.0 (commit 0123456789+changes)",
        "questions 9",
        "repetitions 2",
        "± is the standard deviation over questions",
    ):
        assert fact in caption


def test_csv_holds_numbers_as_numbers_and_agrees_with_the_frame(sound, tmp_path):
    write_tables(tmp_path / "out", views.run_tables(sound), "caption")
    with (tmp_path / "out" / "details.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = results_table(sound)
    assert [float(row["speedup"]) for row in rows] == pytest.approx(expected["speedup"].tolist())
    assert all("±" not in value and "%" not in value for row in rows for value in row.values())


def test_the_three_formats_hold_the_same_cells(sound, tmp_path):
    write_tables(tmp_path / "out", views.run_tables(sound), "caption")
    markdown = (tmp_path / "out" / "speedup.md").read_text()
    latex = (tmp_path / "out" / "speedup.tex").read_text()
    for cell in views.speedup_view(results_table(sound), arm_names(sound.arms))["overall"]:
        assert cell in markdown
        assert cell.replace("±", r"$\pm$") in latex
    assert r"\toprule" in latex and r"\bottomrule" in latex


def test_latex_is_escaped():
    view = pd.DataFrame({"a_b": ["50% & {x}"]})
    latex = to_latex(view, "caption_of #1", "tab:x")
    assert r"a\_b" in latex and r"50\% \& \{x\}" in latex and r"\caption{caption\_of \#1}" in latex


def test_a_table_is_written_in_the_forms_that_it_has(tmp_path):
    frame = pd.DataFrame({"a": ["1"]})
    tables = {"both_forms": Table(frame, frame), "text": Table(frame, None), "plain": Table(None, frame)}
    written = write_tables(tmp_path / "new", tables, "The caption.", label="kind-")
    names = ["both_forms.csv", "both_forms.md", "both_forms.tex", "text.md", "text.tex", "plain.csv"]
    assert [file.name for file in written] == names and all(file.is_file() for file in written)
    assert (tmp_path / "new" / "text.md").read_text().endswith("\n\nThe caption.\n")
    assert r"\label{tab:kind-both-forms}" in (tmp_path / "new" / "both_forms.tex").read_text()


def test_what_the_replay_check_found_is_printed_and_in_the_caption(sound):
    sentence = "Replay: all is well."
    assert notes.summary_table(sound, sentence).endswith(f"\n{sentence}") and sentence in notes.describe_run(sound, sentence)


def test_timing_shares_sum_to_one(sound):
    timing = timing_table(sound)
    shares = timing[[column for column in timing if column.endswith("_share")]].sum(axis=1)
    assert shares.tolist() == pytest.approx([1.0] * 5)
    assert not any("p99" in column for column in timing)


def test_positions_cover_the_longest_block(sound):
    positions = position_table(sound)
    assert positions.loc[positions["label"] == "fixed-5", "position"].tolist() == [1, 2, 3, 4, 5]
    assert "ar" not in set(positions["label"])


def test_gain_over_mean_fixed_stands_under_a_grid_of_starts(tmp_path):
    run = read_run(store_run(tmp_path / "grid", Recipe(arms=GRID, questions=2, repetitions=1)))
    assert any("GammaTune:" in s and "against fixed gamma" in s for s in notes.list_notes(run, ""))
    assert arm_names(run.arms)["gammatune-4"] == "GammaTune from 4"


def test_one_question_is_enough_for_a_table(tmp_path):
    run = read_run(store_run(tmp_path / "one", Recipe(tasks=("qa",), questions=1, repetitions=1)))
    overall = results_table(run).iloc[-1]
    assert math.isnan(overall["speedup_low"]) and overall["speedup"] > 0
    assert "GammaTune" in notes.summary_table(run)


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_a_number_that_there_is_not_is_written_the_same_from_a_frame_and_from_json(nothing):
    assert (number(1.234), interval(1.0, 1.5), plus_minus(1.0, 0.25)) == ("1.23", "[1.00, 1.50]", "1.00 ± 0.25")
    assert (number(nothing), interval(nothing, nothing), plus_minus(1.0, nothing)) == ("-", "-", "1.00")
    assert number(nothing, instead="–") == interval(nothing, nothing, "{} to {}", instead="–") == "–"
