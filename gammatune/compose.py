"""The one place where a composed config becomes checked objects.

Hydra merges the YAML files over the dataclasses of gammatune.config, so a misspelt key or a value of the wrong type is
refused while composing; `__post_init__` refuses values out of range. All of it happens before torch is imported.
"""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from gammatune.config import DecodeConfig, PairConfig, RunConfig, RuntimeConfig, TasksConfig
from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of

CONFIGS = Path(__file__).resolve().parent / "configs"


def register_schemas() -> None:
    """Tell Hydra the schemas that the files under configs/ build on."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for group, name, node in (
        ("model_pair", "pair", PairConfig),
        ("tasks", "tasks", TasksConfig),
        ("decode", "decode", DecodeConfig),
        ("runtime", "runtime", RuntimeConfig),
    ):
        store.store(group=f"{group}/schema", name=name, node=node)
    for name, policy in POLICIES.items():
        store.store(group="policy/schema", name=name, node=policy)


def compose_config(overrides: list[str], name: str = "run") -> RunConfig:
    """What `python run.py OVERRIDES` would run with, as checked objects. Raises UserError and Hydra's own errors."""
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return read_config(compose(name, overrides))


def read_config(composed: DictConfig) -> RunConfig:
    """The composed config as checked objects; `policy` maps names to Policy objects. Raises UserError."""
    config = OmegaConf.to_object(composed)
    refuse_unknown(composed, config, "")
    for name, policy in config.policy.items():
        if not isinstance(policy, Policy):
            raise UserError(f"policy.{name} is no policy: choose from {', '.join(POLICIES)}.")
    plan_arms(config)  # refuses a start that a policy cannot take, before anything heavy is loaded
    return config


def refuse_foresight(config: RunConfig) -> None:
    """Raises UserError for a policy that must know the target's answer: no live run can have it."""
    for name, policy in config.policy.items():
        if policy.needs_foresight:
            raise UserError(
                f"policy={name} must know the answer beforehand: replay it, `python -m gammatune headline TABLE`."
            )


def refuse_unknown(node: DictConfig, built: Any, path: str) -> None:
    """Hydra's +key=value adds keys that no schema has; refuse them like any other typo. Raises UserError."""
    if isinstance(built, dict):
        known = list(built)
    elif is_dataclass(built):
        known = [f.name for f in fields(built)]
    else:
        return
    for key in node:
        if key not in known:
            raise UserError(f"{path or 'The run'} has no setting {key}: choose one of {', '.join(known)}.")
        child = built[key] if isinstance(built, dict) else getattr(built, key)
        refuse_unknown(node[key], child, f"{path}.{key}".lstrip("."))


@dataclass
class Arm:
    """One policy of a run, ready to decode. label: unique name such as gammatune-3."""

    label: str
    policy_name: str
    policy: Policy

    @property
    def settings(self) -> dict:
        return settings_of(self.policy)

    @property
    def gamma(self) -> int | None:
        return self.settings.get("gamma")


def plan_arms(config: RunConfig) -> list[Arm]:
    """The autoregressive arm, then one arm per policy, or per policy and starting gamma. Raises UserError."""
    arms = [Arm("ar", "ar", POLICIES["ar"]())]
    for name, policy in config.policy.items():
        if name != "ar":
            arms.extend(start_arms(name, policy, config.starts))
    return arms


def start_arms(name: str, policy: Policy, starts: list[int]) -> list[Arm]:
    settings = settings_of(policy)
    if "gamma" not in settings:
        return [Arm(name, name, policy)]
    variants = [settings | {"gamma": gamma} for gamma in starts or [settings["gamma"]]]
    return [Arm(f"{name}-{variant['gamma']}", name, type(policy)(**variant)) for variant in variants]
