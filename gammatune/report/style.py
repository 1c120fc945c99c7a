"""One look for all figures, and how they are saved: PNG at 150 dpi and SVG, the same bytes from the same data."""

import hashlib
from pathlib import Path

from matplotlib.figure import Figure

from gammatune.files import replacing
from gammatune.policies import POLICIES

#: For policies that bring no colour of their own; none of these is near a shipped policy's
OTHERS = ("#cc33cc", "#cc336c", "#33cc6c", "#77d8d8", "#6b4935", "#cc3333", "#91b27c", "#33a5cc")
#: For lines that are no policies, such as tasks; apart for colour-blind readers too (Okabe and Ito, without yellow)
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKER = "D"
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
    """The policy's own colour, else one that depends on its name alone, so that it is the same in every figure."""
    option = POLICIES.options.get(policy)
    if option and option.colour:
        return option.colour
    return OTHERS[int(hashlib.sha256(policy.encode()).hexdigest(), 16) % len(OTHERS)]


def marker(policy: str) -> str:
    option = POLICIES.options.get(policy)
    return option.marker if option and option.marker else MARKER


def save(figures: dict[str, Figure | None], folder: Path) -> list[Path]:
    """Write NAME.png and NAME.svg without dates, of every figure that there is; returns the paths."""
    files = []
    for name, figure in figures.items():
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for kind, metadata in (("png", None), ("svg", {"Date": None})):
                files.append(folder / f"{name}.{kind}")
                with replacing(files[-1]) as partial:
                    figure.savefig(partial, format=kind, metadata=metadata)
    return files
