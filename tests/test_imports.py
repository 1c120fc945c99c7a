"""Imports go only downward, and what only reads files or counts rounds never loads torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up; a module imports from floors below its own and from its own folder, nothing else
FLOORS = (
    {"", "process"},
    {"errors"},
    {"words"},
    {"records", "traces", "config", "machine", "plugins"},
    {"files"},
    {"registry"},
    {"models", "policies", "tasks"},
    {"runtimes"},
    {"drafters"},
    {"replay", "decoding", "compose"},
    {"runs", "transformers"},
    {"studies", "training"},
    {"report"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
# What a command loads before it knows that a model is needed; a study that loads a model is imported when it runs
LIGHT = {
    "errors",
    "records",
    "files",
    "traces",
    "config",
    "registry",
    "compose",
    "policies",
    "replay",
    "report",
    "commands",
    "cli",
}
LIGHT_MODULES = {
    "gammatune.runs.store",
    "gammatune.studies.study",
    "gammatune.studies.headline",
    "gammatune.studies.advise",
    "gammatune.studies.engines",
    "gammatune.studies.replay_check",
    "gammatune.training.recipe",
}


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


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def test_a_module_imports_only_from_floors_below():
    wrong = [
        f"{module} imports {other}"
        for module, path in FILES.items()
        for other in sorted(imported(path))
        if part_of(other) != part_of(module) and floor_of(part_of(other)) >= floor_of(part_of(module))
    ]
    assert not wrong


def test_nothing_imports_in_a_circle():
    graph = {module: imported(path) - {module} for module, path in FILES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(FILES)


def test_reports_policies_and_configs_load_without_torch():
    modules = [module for module in FILES if part_of(module) in LIGHT or module in LIGHT_MODULES]
    assert "gammatune.report.figures" in modules and "gammatune.policies.gammatune" in modules
    program = (
        "import sys, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
