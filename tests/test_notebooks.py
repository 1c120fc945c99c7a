"""The shipped notebooks run from top to bottom on stored results, without torch, and carry no outputs."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from report.stored import Recipe, store_run
from report.stored_study import draw_study_table, made_bounds, made_folder
from test_cli import BLOCK

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """execute(name, check) -> a notebook's outputs on the results in tmp_path. check: a last cell, of the test's own."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    monkeypatch.setenv("GAMMATUNE_RESULTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "block"), str(NOTEBOOKS.parent)]))

    def run(name: str, check: str = "") -> "Outputs":
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(check))
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
        return Outputs([output for cell in notebook.cells for output in cell.get("outputs", [])])

    return run


class Outputs:
    """What a notebook shows. text: printed; html, markdown: displayed; pictures: how many PNGs."""

    def __init__(self, outputs: list):
        self.text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
        data = [output.get("data", {}) for output in outputs]
        self.html = "".join(each.get("text/html", "") for each in data)
        self.markdown = "".join(each.get("text/markdown", "") for each in data)
        self.pictures = sum("image/png" in each for each in data)


def test_outputs_are_stripped():
    for file in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), file


def test_one_run_shows_table_answer_and_figures(execute, tmp_path):
    store_run(tmp_path / "runs" / "demo", Recipe(questions=2, repetitions=1))
    shown = execute("01_one_run.ipynb")
    assert "GammaTune+" in shown.text
    assert "drafted and accepted" in shown.html
    assert shown.pictures == 4


#: that `Watched` decides as the rule does, and by what it writes down
CHECK_WATCHED = """
rule = POLICIES["optimal_stopping"]()
hand_prices(rule, curve)
(log,) = replay(prepare(AcceptanceTable([followed], table.facts)), rule, keep_rounds=True).logs
assert [r.counts() for r in log] == [r.counts() for r in rounds]
worth = weighed["and of the next"] > weighed["price (tokens)"]
assert weighed["pays"][worth].all() and (worth == weighed["pays"]).mean() > 0.9  # else the ones after it are worth theirs
assert {True, False} == set(weighed["pays"]) and len(weighed) >= 30
drafted = weighed[weighed["outcome"] != "not drafted"].groupby("round").size()
whole = range(weighed["round"].max())
assert drafted.reindex(whole, fill_value=0).tolist() == [rounds[n].drafted for n in whole]
"""


def test_policies_shows_lanes_honesty_and_a_policy_of_ones_own(execute, tmp_path):
    table = draw_study_table()
    shutil.copytree(made_folder(), tmp_path / "acceptance" / "made")
    shown = execute("02_policies.ipynb", CHECK_WATCHED)
    right = sum(int(turn.match.sum()) for turn in table.turns) / table.tokens
    assert f"made: 24 questions, 30 answers, {table.tokens:,} tokens" in shown.text
    assert re.search(rf"Over all positions the draft claims \d+% and is right {right:.0%} of the time", shown.text)
    assert "One more draft token costs about" in shown.text
    assert re.search(r"optimal stopping: \d+ rounds, [\d.]+ tokens/s \(modelled\); GammaTune\+: \d+ rounds", shown.text)
    assert "price (tokens)" in shown.html and "with GammaTune+" in shown.html
    for words in ("top-1 probability", "gamma_now", "one more", "regret", "gain of adapting", "Math"):
        assert words in shown.html, words
    assert shown.pictures == 4


def test_paper_tables_shows_claim_tables_and_bounds(execute, tmp_path):
    shutil.copytree(made_folder(), tmp_path / "reference" / "made")
    shutil.copytree(made_bounds(), tmp_path / "reference" / "log")
    shown = execute("03_paper_tables.ipynb")
    assert "Pair made, 24 questions" in shown.text
    assert "GammaTune: claimed 1.15 ± 0.05; here " in shown.text and "GammaTune+: claimed 1.16 ± 0.03; here " in shown.text
    assert "SGLang walk: " in shown.text and "GammaTune+, tau: fastest at " in shown.text
    assert "log, ratio 12: GammaTune " in shown.text
    for words in ("paper's claim", "MT-Bench", "regret", "HF heuristic", "unknown positions"):
        assert words in shown.markdown, words
    assert shown.pictures == 6


def test_without_a_study_a_notebook_says_how_to_make_one(execute):
    with pytest.raises(Exception, match="There is no acceptance table at .*gammatune record"):
        execute("02_policies.ipynb")
