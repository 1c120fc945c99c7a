"""Classes from outside this package: by dotted name from the current folder or the path, and by installed entry points."""

import importlib
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gammatune.errors import UserError


def classes_of(module: ModuleType, base: type) -> list[type]:
    """Classes derived from `base` that the module itself defines, in the order of their definition."""
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [kind for kind in own if issubclass(kind, base) and kind is not base]


def import_class(path: str, group: str, base: type) -> type:
    """A class of a config group by its dotted name. Raises UserError that says what to change."""
    module_name, _, class_name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file of the user's takes the place of a library
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"{group}={path}: {describe_failure(error, module_name)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        defined = [f"{module_name}.{kind.__name__}" for kind in classes_of(module, base)]
        hint = f"choose one of {', '.join(defined)}" if defined else f"define one in {module.__file__}"
        raise UserError(f"{group}={path}: {module_name} has no class {class_name}: {hint}.")
    return check_class(found, path, group, base)


def check_class(found, path: str, group: str, base: type) -> type:
    """Raises UserError for what is no class of the group, or has settings that no config can hold."""
    if not (isinstance(found, type) and issubclass(found, base)):
        parent = f"{base.__module__.removesuffix('.base')}.{base.__name__}"
        raise UserError(f"{group}={path} is no {group}: derive its class from {parent}.")
    if "__dataclass_fields__" not in vars(found):
        raise UserError(f"{group}={path} is no dataclass, so its settings are unknown: write @dataclass above the class.")
    try:
        OmegaConf.structured(found)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{group}={path} has a setting that no config can hold ({reason}): give it a plain type.") from error
    return found


def describe_failure(error: Exception, module_name: str) -> str:
    """Why a module cannot be imported, with file and line of the fault, and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        return f"there is no module {error.name}: put {error.name}.py into the current folder or on PYTHONPATH."
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}, cannot be read ({error.msg}): correct that line."
    # The first frame at module level is the user's own line, whatever library it fails in
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    place = f"{lines[0].filename}, line {lines[0].lineno}," if lines else f"importing {module_name}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{place} fails with {reason.rstrip('.')}: correct it, or install what it needs."


@dataclass
class Plugins:
    """What installed packages offer to one config group, by the names of their entry points."""

    found: dict[str, type]
    broken: dict[str, UserError]  # why one cannot be used: raised where it is named, no matter to anyone else


def load_plugins(entry_point_group: str, group: str, base: type) -> Plugins:
    """Import every entry point of the group; one that fails is kept with its reason."""
    plugins = Plugins({}, {})
    for point in entry_points(group=entry_point_group):
        path = point.value.replace(":", ".")
        try:
            plugins.found[point.name] = check_class(point.load(), path, group, base)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else describe_failure(error, point.module)
            package = point.dist.name if point.dist else point.module
            plugins.broken[point.name] = UserError(f"{group}={point.name} of the installed {package}: {reason}")
    return plugins
