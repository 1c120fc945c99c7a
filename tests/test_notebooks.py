"""The shipped notebooks run from top to bottom on stored results, and carry no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from report.stored import Recipe, store_run

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
ONE_RUN = NOTEBOOKS / "01_one_run.ipynb"


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.name)
def test_outputs_are_stripped(file):
    cells = nbformat.read(file, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_one_run_shows_table_answer_and_figures(tmp_path, monkeypatch):
    store_run(tmp_path / "runs" / "demo", Recipe(questions=2, repetitions=1))
    monkeypatch.setenv("GAMMATUNE_RESULTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(ONE_RUN, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert "GammaTune+" in text
    assert "drafted and accepted" in html
    assert len(pictures) == 4
