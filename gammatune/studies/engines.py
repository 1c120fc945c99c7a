"""What serving engines can be told about draft lengths: engines.yaml, read and filled in. Facts stand there, not here."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gammatune import __version__
from gammatune.policies import Policy
from gammatune.policies.base import settings_of
from gammatune.studies.tuning import chosen_settings

FILE = Path(__file__).with_name("engines.yaml")
ANY = "*"
PLACE = re.compile(r"\{(\w+)\}")
QUOTED: dict[str, Callable[[Any], str]] = {
    "shell": lambda value: shlex.quote(str(value)),
    "python": lambda value: json.dumps(value) if isinstance(value, str) else repr(value),
    "yaml": json.dumps,  # of which every text is YAML too
}


@dataclass(frozen=True)
class Models:
    """What lines call the two models of a pair, placeholders where their names are not known, and where prices are."""

    target: str = "TARGET"
    draft: str = "DRAFT"
    target_file: str = "TARGET.gguf"
    draft_file: str = "DRAFT.gguf"
    prices: dict = field(default_factory=dict)  # what gammatune.transformers is told where a policy decides by prices


@dataclass(frozen=True)
class Choice:
    """A policy that an engine can run."""

    policy: str  # by its name; ANY for all of them
    line: str  # with places to fill
    settings: dict  # by the engine's own keys, with places to fill
    config: dict | None = None  # what {config} stands for


@dataclass(frozen=True)
class Engine:
    """One entry of engines.yaml, whose head says what the fields are."""

    name: str
    version: str
    form: str
    names: str
    plain: str
    choices: tuple[Choice, ...]
    absent: str | None = None


@dataclass(frozen=True)
class Line:
    """What to paste."""

    text: str
    settings: dict = field(default_factory=dict)  # by the engine's own keys; empty without a draft


def load_engines() -> list[Engine]:
    """In the order of output."""
    entries = OmegaConf.to_container(OmegaConf.load(FILE))
    return [read_engine(entry) for entry in entries.values()]


def read_engine(entry: dict) -> Engine:
    choices = tuple(Choice(**choice) for choice in entry.pop("choices"))
    return Engine(**entry | {"version": entry["version"].format(version=__version__)}, choices=choices)


def write_line(engine: Engine, policy: Policy | None, models: Models) -> Line:
    """The engine's line for a policy that it can run; None: without a draft. Raises KeyError for another policy."""
    values = name_models(engine, models)
    if policy is None:
        return Line(fill_text(engine.plain, values, QUOTED[engine.form]))
    choice = find_choice(engine, policy.name)
    if choice is None:
        raise KeyError(f"{engine.name} cannot run {policy.name}")
    values |= policy_values(policy, models)
    if choice.config is not None:
        filled = {key: fill(value, values) for key, value in choice.config.items()}
        values["config"] = json.dumps(filled) if engine.form == "shell" else Verbatim(json.dumps(filled))
    settings = {key: fill(value, values) for key, value in choice.settings.items()}
    return Line(fill_text(choice.line, values, QUOTED[engine.form]), settings)


class Verbatim(str):
    """Text that is in the line's form already."""


def find_choice(engine: Engine, policy: str) -> Choice | None:
    return next((choice for choice in engine.choices if choice.policy in (policy, ANY)), None)


def name_models(engine: Engine, models: Models) -> dict:
    if engine.names == "gguf":
        return {"target": models.target_file, "draft": models.draft_file}
    return {"target": models.target, "draft": models.draft}


def policy_values(policy: Policy, models: Models) -> dict:
    """What the places of a policy's line stand for."""
    fields = settings_of(policy)
    given = chosen_settings(policy) | (models.prices if policy.needs_prices else {})
    written = "".join(f", {name}={value!r}" for name, value in given.items())
    values = fields | {"policy": policy.name, "fields": Verbatim(written)}
    return values | ({"gamma_plus_one": fields["gamma"] + 1} if "gamma" in fields else {})


def fill(value: Any, values: dict) -> Any:
    """A value of settings: one place alone keeps the type of what stands for it."""
    if isinstance(value, str) and (place := PLACE.fullmatch(value)):
        return values[place[1]]
    return value


def fill_text(text: str, values: dict, quote: Callable[[Any], str]) -> str:
    def replace(place: re.Match) -> str:
        value = values[place[1]]
        return value if isinstance(value, Verbatim) else quote(value)

    return PLACE.sub(replace, text)
