"""The one place where a composed config becomes checked objects.

Hydra merges the YAML files over the dataclasses of gammatune.config, so a misspelt key or a value of the wrong type is
refused while composing; `__post_init__` refuses values out of range. All of it happens before torch is imported.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gammatune.config import DecodeConfig, PairConfig, RunConfig, RuntimeConfig, TasksConfig
from gammatune.errors import CONFIGS, UserError, as_written, clip, plain_name, unknown_setting
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of, with_settings
from gammatune.policies.session import PolicySession, describe_error
from gammatune.process import loading
from gammatune.records import is_count
from gammatune.words import check_choices, readable

GROUPS = ("model_pair", "tasks", "policy", "drafter", "decode", "runtime", "experiment")
LARGEST = 2**31 - 1  # of any whole number but a seed: what no length, count or size exceeds, and every table can hold
#: Config groups whose choices are classes; a drafter's joins when a word names one, since it brings torch along
REGISTRIES = [POLICIES]


def register_schemas() -> None:
    """Tell Hydra the schemas that the files under configs/ build on, and every class that a name stands for."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for group, name, node in (
        ("model_pair", "pair", PairConfig),
        ("tasks", "tasks", TasksConfig),
        ("decode", "decode", DecodeConfig),
        ("runtime", "runtime", RuntimeConfig),
    ):
        store.store(group=f"{group}/schema", name=name, node=node)
    for registry in REGISTRIES:
        store.repo.pop(registry.group, None)  # classes named by their path hold for one command only
        for name, option in registry.options.items():
            store.store(group=registry.group, name=name, node=option.node(), package=registry.package(name))


def read_words(words: Sequence[str], own_folder: bool = False) -> list[str]:
    """key=value words as Hydra takes them: classes that were named by their path are registered under a plain name.

    own_folder: the user has configs of their own beside ours. Raises UserError for a word that cannot be read, a class that
    cannot be imported or used, and a choice that is unknown.
    """
    words = [readable(word) for word in words]
    if any(re.match(r"[+~]*drafter\b", word) for word in words):
        with loading():
            from gammatune.drafters import DRAFTERS

        REGISTRIES[1:] = [DRAFTERS]
    for registry in REGISTRIES:
        words = registry.read_words(words)
    register_schemas()
    check_choices(words, GROUPS, [registry.group for registry in REGISTRIES if registry.lists], own_folder)
    return list(words)


def compose_config(overrides: list[str], name: str = "run") -> RunConfig:
    """What `python run.py OVERRIDES` would run with, as checked objects. Raises UserError and Hydra's own errors."""
    words = read_words(overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return read_config(compose(name, words))


def read_config(composed: DictConfig) -> RunConfig:
    """The composed config as checked objects; `policy` maps names to Policy objects. Raises UserError."""
    if OmegaConf.get_type(composed) is not RunConfig:
        raise UserError("The config has no schema: let its defaults begin with schema/run@_here_, as configs/run.yaml does.")
    for name, settings in composed.policy.items():
        with making(name):
            OmegaConf.to_object(settings)  # on its own first, so that an error has a name
    config = OmegaConf.to_object(composed)
    refuse_unknown(composed, config, "")
    refuse_extreme(OmegaConf.to_container(composed, resolve=True))
    for name, policy in config.policy.items():
        if not isinstance(policy, Policy):
            raise UserError(f"policy.{name} is no policy: choose from {', '.join(POLICIES)}.")
        policy.name = plain_name(name, "The policy")
    for what, part in (("model_pair.name", config.model_pair), ("tasks.name", config.tasks)):
        plain_name(part.name, what)
    refuse_unread(config.model_pair)
    if config.drafter is not None:
        config.drafter = read_drafter(config.drafter)
        refuse_unwatchable(config)
    if config.prices is not None and not any(PolicySession(policy).needs_prices for policy in config.policy.values()):
        raise UserError(
            f"prices={clip(config.prices)} is read by none of these policies: leave it out, or add optimal_stopping."
        )
    plan_arms(config)  # refuses a start that a policy cannot take, before anything heavy is loaded
    return config


def refuse_unread(pair: PairConfig) -> None:
    """Raises UserError for files of a pair that is made on the spot."""
    if pair.source != "tiny-random":
        return
    for role in ("target", "draft"):
        for key in ("path", "revision", "gguf", "quantization"):
            value = getattr(getattr(pair, role), key)
            if value is not None:
                raise UserError(
                    f"model_pair.{role}.{key}={clip(str(value))} is not read by a pair that is made on the spot: leave "
                    "it out."
                )


@contextmanager
def making(name: str) -> Iterator[None]:
    """Whatever the constructor of a policy raises becomes a UserError that names it."""
    try:
        yield
    except (UserError, OmegaConfBaseException, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{as_written(f'policy.{name}')} cannot be made: {describe_error(error)}.") from error


def read_drafter(made: Any):
    """The drafter of a config: one, or the members of a list by their names. Raises UserError for anything else."""
    from gammatune.drafters.base import Drafter
    from gammatune.drafters.first_of import FirstOf

    members = list(made.values()) if isinstance(made, dict) else [made]
    if not members or not all(isinstance(member, Drafter) for member in members):
        raise UserError("drafter must be one by its name or a list of such, as in drafter=lookup or drafter=[suffix,model].")
    return members[0] if len(members) == 1 else FirstOf(members)


def refuse_unwatchable(config: RunConfig) -> None:
    """Raises UserError for a policy that watches the signals of a drafter that has none."""
    from gammatune.drafters.base import refuse_watching

    for name, policy in config.policy.items():
        if not config.drafter.signals and PolicySession(policy).watches_draft:
            refuse_watching(config.drafter, name)


def refuse_foresight(config: RunConfig) -> None:
    """Raises UserError for a policy that must know the target's answer: no live run can have it."""
    for name, policy in config.policy.items():
        if PolicySession(policy).call("oracle"):
            raise UserError(f"policy={name} must know the answer beforehand: replay it, `gammatune headline TABLE`.")


def refuse_extreme(node: Any, path: str = "") -> None:
    """Raises UserError for a number in a config that means nothing to any setting, wherever it stands."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key != "seed":
                refuse_extreme(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, int) and abs(node) > LARGEST or isinstance(node, float) and not math.isfinite(node):
        raise UserError(
            f"{as_written(path)}={clip(str(node))} is out of range: it must be a finite number up to {LARGEST:,}."
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
            raise UserError(unknown_setting(path, key, known))
        child = built[key] if isinstance(built, dict) else getattr(built, key)
        refuse_unknown(node[key], child, f"{path}.{key}".lstrip("."))


@dataclass
class Arm:
    """One policy of a run, ready to decode."""

    label: str  # unique, such as gammatune-3
    policy: Policy

    @property
    def policy_name(self) -> str:
        return self.policy.name

    @property
    def settings(self) -> dict:
        return settings_of(self.policy)

    @property
    def gamma(self) -> int | None:
        """Where it starts from; None where the setting of that name, if there is one, means something else."""
        gamma = self.settings.get("gamma")
        return gamma if is_count(gamma) else None


def plan_arms(config: RunConfig) -> list[Arm]:
    """The autoregressive arm, then one arm per policy, or per policy and starting gamma. Raises UserError."""
    arms = [Arm("ar", POLICIES["ar"]())]
    for policy in config.policy.values():
        if policy.name != "ar":
            arms.extend(start_arms(policy, config.starts))
    return arms


def start_arms(policy: Policy, starts: list[int]) -> list[Arm]:
    """A policy that has a gamma once from each start, or from its own where none is given."""
    own = settings_of(policy)
    if "gamma" not in own:
        return [Arm(policy.name, policy)]
    with making(policy.name):
        return [Arm(f"{policy.name}-{gamma}", with_settings(policy, gamma=gamma)) for gamma in starts or [own["gamma"]]]
