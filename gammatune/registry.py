"""Names of configs that stand for classes: shipped ones, presets of them, installed plug-ins, and any class by dotted name.

One mechanism for every config group whose choices are dataclasses (policy, drafter).
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gammatune.errors import UserError, write_as
from gammatune.plugins import Plugins, classes_of, import_class, load_plugins

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Option:
    """A class under a name, with defaults of its own. Called with settings, it makes an object that knows this name."""

    name: str
    rule: type
    settings: dict = field(default_factory=dict)  # defaults unlike those of the class
    title: str = ""  # in tables and figures
    colour: str = ""  # "#rrggbb", empty for none of its own
    marker: str = ""  # of matplotlib, empty for none of its own

    def __call__(self, **settings):
        """Raises UserError for a setting that there is not, and for a value out of range."""
        known = [f.name for f in fields(self.rule)]
        for key in settings.keys() - set(known):
            raise UserError(f"{self.name} has no setting {key}: choose one of {', '.join(known)}.")
        made = self.rule(**deepcopy(self.settings) | settings)
        made.name = self.name
        return made

    def node(self) -> DictConfig:
        """Its settings as a typed config, which refuses unknown fields and wrong types. Raises OmegaConf's errors."""
        return OmegaConf.merge(OmegaConf.structured(self.rule), self.settings)


def describe_class(rule: type, name: str = "") -> Option:
    """What a class says of itself. It does not inherit another one's name, title or looks."""
    own = vars(rule)
    name = name or own.get("name") or rule.__name__
    return Option(name, rule, {}, own.get("title") or name, own.get("colour", ""), own.get("marker", ""))


def discover(package: str, path: Iterable[str], base: type) -> list[type]:
    """The classes of a package's modules that derive from `base` and give themselves a name, module by module."""
    modules = [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path)]
    return [kind for module in modules for kind in classes_of(module, base) if vars(kind).get("name")]


class Registry(Mapping[str, Option]):
    """What the names of one config group stand for. As a mapping it holds what is shipped, in the order of tables."""

    def __init__(
        self,
        group: str,  # config group, such as "policy"
        base: type,  # what every class of it derives from
        shipped: Iterable[type],
        entry_point_group: str,  # of installed plug-ins
        presets: Path | None = None,  # YAML of shipped classes with other defaults
        order: Sequence[str] = (),  # names in the order of tables; others follow
        several: bool | None = False,  # whether a run has many choices, each configured under its own name; None: words say
    ):
        self.group, self.base, self.several = group, base, bool(several)
        self.lists, self.fixed = several is not False, several is not None
        self.entry_point_group = entry_point_group
        options = {option.name: option for option in map(describe_class, shipped)}
        for name, preset in read_presets(presets).items():
            options[name] = Option(name, options[preset.pop("rule")].rule, **preset)
        rank = {name: place for place, name in enumerate(order)}
        self.shipped = {name: options[name] for name in sorted(options, key=lambda name: rank.get(name, len(rank)))}
        self.dotted: dict[str, Option] = {}

    def __getitem__(self, name: str) -> Option:
        return self.shipped[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shipped)

    def __len__(self) -> int:
        return len(self.shipped)

    @cached_property
    def plugins(self) -> Plugins:
        return load_plugins(self.entry_point_group, self.group, self.base)

    @property
    def options(self) -> dict[str, Option]:
        """Everything that this process knows by name: shipped, installed, and what `read_words` met by its path."""
        installed = {name: describe_class(rule, name) for name, rule in self.plugins.found.items()}
        return self.dotted | installed | self.shipped

    def package(self, name: str) -> str:
        """Where the settings of a choice stand in the config."""
        return f"{self.group}.{name}" if self.several else self.group

    def read_words(self, words: Sequence[str]) -> list[str]:
        """Command-line words with classes that were named by their path under the plain names of `options`.

        policy=[fixed,my_module.Halving] policy.my_module.Halving.gamma=6
        -> policy=[fixed,Halving] policy.Halving.gamma=6

        Of a single choice the settings stand under the group: drafter=lookup drafter.lookup.longest=4 -> drafter.longest=4.

        Raises UserError for a class that cannot be imported or is none of this group.
        """
        self.dotted.clear()
        if not self.fixed:
            self.several = any("[" in word for word in words if self.chooses(word))
        names: dict[str, str] = {}  # by path or plain name, of the classes met so far
        chosen = [self.read_choice(word, names) for word in words]
        return [self.read_key(word, names) for word in chosen]

    def chooses(self, word: str) -> bool:
        """Whether it is GROUP=VALUE."""
        return word.partition("=")[0].lstrip("+") == self.group

    def read_choice(self, word: str, names: dict[str, str]) -> str:
        """GROUP=VALUE, with every path in the value replaced; other words as they are."""
        key, _, value = word.partition("=")
        if not self.chooses(word):
            return word
        return f"{key}={NAME.sub(lambda found: self.name_of(found[0], names), value)}" if value else word

    def read_key(self, word: str, names: dict[str, str]) -> str:
        """GROUP.PATH.SETTING=VALUE, with the path replaced; other words as they are."""
        found = re.fullmatch(rf"([+~]*){self.group}\.([\w.]+)(.*)", word, re.DOTALL)
        if not found:
            return word
        prefix, key, rest = found.groups()
        plain = key.partition(".")[0]
        if plain in self.options and (self.several or plain not in names):
            return word
        path = next((p for p in sorted(names, key=len, reverse=True) if f"{key}.".startswith(f"{p}.")), None)
        if path is None:
            path = key.rpartition(".")[0]  # not chosen by any word, as in a sweep: all but the setting
            if "." not in path:
                return word
        return f"{prefix}{self.package(self.name_of(path, names))}{key.removeprefix(path)}{rest}"

    def name_of(self, path: str, names: dict[str, str]) -> str:
        """The name that stands for a path from now on: the class's own, or made of the path where another one has it."""
        if path in self.plugins.broken:
            raise self.plugins.broken[path]
        if "." not in path or path in names:
            return names.setdefault(path, path)
        rule = import_class(path, self.group, self.base)
        option = describe_class(rule)
        known = self.options.get(option.name)
        if known and known.rule is not rule:
            option, known = describe_class(rule, path.replace(".", "_")), None
        if known is None:
            self.dotted[option.name] = option
            write_as(self.package(option.name), f"{self.group}.{path}")
        names[path] = option.name
        return option.name


def read_presets(path: Path | None) -> dict[str, dict]:
    return OmegaConf.to_container(OmegaConf.load(path)) if path else {}
