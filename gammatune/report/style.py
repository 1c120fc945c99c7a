"""One look for all figures, and how they are saved: PNG at 150 dpi and SVG, the same bytes from the same data."""

from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart under every common colour blindness.
COLOURS = {
    "ar": "#000000",
    "fixed": "#8a8f98",
    "gammatune": "#0072b2",
    "gammatune_plus": "#d55e00",
    "hf_constant": "#cc79a7",
    "hf_heuristic": "#009e73",
    "hf_confidence": "#e69f00",
}
MARKERS = {"fixed": "s", "gammatune": "o", "gammatune_plus": "^"}
OTHER = "#56b4e9"
INK = "#22262b"

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.12,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": "#9aa0a8",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "gammatune",
    "svg.fonttype": "path",
}


def colour(policy: str) -> str:
    return COLOURS.get(policy, OTHER)


def save(figures: dict[str, Figure | None], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg without dates, of every figure that there is; returns the paths."""
    files = []
    for name, figure in figures.items():
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png")
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            files += [folder / f"{name}.png", folder / f"{name}.svg"]
    return files
