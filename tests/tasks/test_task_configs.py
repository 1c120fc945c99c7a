from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gammatune.config import TASKS, TasksConfig
from gammatune.errors import UserError
from gammatune.tasks.questions import load_questions

CONFIGS = Path(__file__).parents[2] / "gammatune" / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))


def compose_tasks(name, *overrides) -> TasksConfig:
    ConfigStore.instance().store(group="tasks/schema", name="tasks", node=TasksConfig)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=[f"+tasks={name}", *overrides])
    return OmegaConf.to_object(config.tasks)


def test_every_task_has_a_config():
    assert set(NAMES) == {"demo", "specbench", *TASKS}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_composes_and_starts_with_a_command(name):
    config = compose_tasks(name)
    assert config.name == name and config.checksum == "pinned"
    package, command, *_ = (CONFIGS / "tasks" / f"{name}.yaml").read_text().splitlines()
    assert package == "# @package tasks" and command.startswith(f"# python run.py tasks={name}")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_config_selects_the_80_questions_of_its_task(name, real_file):
    chosen = load_questions(compose_tasks(name, f"tasks.path={real_file}")).questions
    assert len(chosen) == 80 and {q.task for q in chosen} == {name}


def test_every_field_can_be_overridden():
    overrides = {"path": "q.jsonl", "checksum": None, "include": ["qa"], "limit": 3, "seed": 5, "name": "x"}
    values = [f"tasks.{key}={'null' if value is None else value}" for key, value in overrides.items()]
    assert compose_tasks("specbench", *values) == TasksConfig(source="specbench", **overrides)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"source": "hub"}, "tasks.source=hub is not known"),
        ({"path": "a.jsonl"}, "only read with tasks.source=specbench"),
        ({"checksum": "abc"}, "pinned, null or a sha256"),
        ({"include": ["poems"]}, "tasks.include names poems"),
        ({"limit": 0}, "tasks.limit=0 must be 1 or more"),
        ({"seed": 1}, "tasks.seed=1 .* without tasks.limit"),
    ],
)
def test_a_wrong_field_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        TasksConfig(name="t", **fields)
