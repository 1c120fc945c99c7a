"""An installed wheel works from any folder: its configs, presets, tasks and both entry points are in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "reference" / "smollm2-draft-135m-demo-2828959329" / "acceptance.parquet"
pytestmark = pytest.mark.slow


def pip(*words) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the wheel's files, put before the environment's packages."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    shutil.copytree(ROOT / "gammatune", source / "gammatune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source)
    (wheel,) = wheels.glob("gammatune-*.whl")
    pip("install", "--no-deps", "--target", site, wheel)
    return site


@pytest.fixture
def call(installed, tmp_path):
    """call(*command) in an empty folder, where the checkout is not on the path; returns what was printed."""

    def called(*command):
        alone = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return called


def test_it_is_the_wheel_that_is_imported(call, installed):
    place = call(sys.executable, "-c", "import gammatune; print(gammatune.__file__)")
    assert Path(place.strip()).is_relative_to(installed)


def test_a_run_from_an_empty_folder(call, tmp_path):
    words = ("model_pair=tiny-random", "tasks=demo", "tasks.include=[qa]", "tasks.limit=1", "decode.max_new_tokens=8")
    out = call(sys.executable, "-m", "gammatune", "run", *words, "policy=[fixed,svip_paper]")
    assert '"status": "ok"' in out.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert len(list(tmp_path.glob("results/runs/*/report/report.html"))) == 1  # whose templates are data of the package


def test_a_sweep_of_runs_by_the_console_command(call, installed):
    words = ("model_pair=tiny-random", "tasks=demo", "tasks.include=[qa]", "plan=true", "policy=fixed")
    out = call(sys.executable, installed / "bin" / "gammatune", "run", "-m", *words, "policy.fixed.gamma=2,3")
    assert out.count('"status": "planned"') == 2


def test_templates_and_recipes_of_training_come_along(call):
    program = "from gammatune.training import prompts, recipe; print(recipe.recipe_for('tiny-random').epochs)"
    assert call(sys.executable, "-c", program).strip() == "4.0"


def test_a_headline_from_a_stored_table(call):
    out = call(sys.executable, "-m", "gammatune", "headline", TABLE, "--cost-ratio", "10", "policy=[gammatune,ucb_released]")
    assert "GammaTune" in out and "UCB (released form)" in out
