"""One writer for all tables: Markdown and LaTeX for readers, CSV for programs, each with its caption."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gammatune.files import write_text

LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "γ": r"$\gamma$"}
)


@dataclass
class Table:
    """One table, of which either form may be missing."""

    #: cells as text, written as .md and .tex
    view: pd.DataFrame | None
    #: the same and more as numbers in full, written as .csv
    numbers: pd.DataFrame | None


def write_tables(folder: Path, tables: dict[str, Table], caption: str, label: str = "") -> list[Path]:
    """NAME.csv, NAME.md and NAME.tex of each table; returns the files. label: what LaTeX labels begin with, after tab:."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, table in tables.items():
        if table.numbers is not None:
            texts[f"{name}.csv"] = table.numbers.to_csv(index=False)
        if table.view is not None:
            texts[f"{name}.md"] = f"{to_markdown(table.view)}\n\n{caption}\n"
            texts[f"{name}.tex"] = to_latex(table.view, caption, f"tab:{label}{name.replace('_', '-')}")
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def to_markdown(view: pd.DataFrame, style: str = "pipe") -> str:
    """style: "pipe" for files, "simple" for a terminal."""
    return view.to_markdown(index=False, disable_numparse=True, tablefmt=style)


def to_latex(view: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table; every cell, heading and the caption escaped (a Styler would leave out the caption and ±)."""
    escaped = view.astype(str).map(lambda text: text.translate(LATEX))
    escaped.columns = [column.translate(LATEX) for column in view.columns]
    return escaped.style.hide(axis="index").to_latex(
        hrules=True, caption=caption.translate(LATEX), label=label, position_float="centering"
    )
