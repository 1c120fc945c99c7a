"""Imports go only downward, and what only reads files or counts rounds never loads torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = {"errors", "rounds"}
LOADERS = {"models", "policies", "tasks"}
ALLOWED = {
    "": set(),
    "errors": set(),
    "rounds": {"errors"},
    "cache_dir": {"errors"},
    "messages": {"errors"},
    "policies": BOTTOM,
    "tasks": BOTTOM | {"cache_dir"},
    "models": BOTTOM | {"cache_dir"},
    "decoding": BOTTOM | LOADERS,
    "config": BOTTOM | LOADERS | {"decoding"},
    "integrations": BOTTOM | LOADERS | {"decoding"},
    "replay": BOTTOM | LOADERS | {"decoding"},
    "experiment": BOTTOM | LOADERS | {"decoding", "config", "replay", ""},
    "report": BOTTOM | {"tasks", "policies", "replay"},
    "verbs": BOTTOM | {"config", "experiment", "replay", "report", "tasks", "policies"},
    "cli": BOTTOM | {"messages", "verbs"},
    "__main__": {"cli"},
}
LIGHT = ("policies", "report", "replay", "verbs", "cli", "config", "messages", "rounds", "errors", "cache_dir")
WALKS_A_MODEL = {"gammatune.drafters.trace", "gammatune.drafters.known"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted((ROOT / "gammatune").rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & FILES.keys()


def part_of(module: str) -> str:
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_floors_below(module):
    own = part_of(module)
    used = {part_of(other) for other in imported(FILES[module])} - {own}
    assert used <= ALLOWED[own]


def test_nothing_imports_in_a_circle():
    graph = {module: imported(path) - {module} for module, path in FILES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(FILES)


def test_reports_policies_and_configs_load_without_torch():
    modules = [module for module in FILES if part_of(module) in LIGHT and module not in WALKS_A_MODEL]
    assert "gammatune.report.figures" in modules and "gammatune.policies.gammatune" in modules
    program = (
        "import sys, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
