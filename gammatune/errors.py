"""Errors as one sentence each: what is wrong, what is valid, what to do. And what each means as an exit code."""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from gammatune.process import INTERRUPTED, STDOUT

CONFIGS = Path(__file__).resolve().parent / "configs"
FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
FOLDER_ERRORS += (errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
BAD_INPUT = 2
#: what could steer a terminal or hide text: C0 and C1 controls but newline and tab, and marks that turn the writing round
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: what may become part of a path or a label: letters and digits of any script, and . _ - + within
PLAIN_NAME = re.compile(r"\w[\w.+-]{0,99}")
#: config keys by which a class named by its path goes, and how the user wrote them
WRITTEN: dict[str, str] = {}


class UserError(Exception):
    """Bad input, a missing file or an unusable folder; entry points print the sentence and exit with code 2."""


def printable(text: str) -> str:
    """Text of a model, a file or a name as it may go to a terminal: control characters as \\x1b or \\u202e."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    """The same for a name or a label, which has no lines of its own."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def clip(text: str, longest: int = 100) -> str:
    """The beginning of a text that may be anything, as a sentence can show it."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def plain_name(text: str, what: str) -> str:
    """The text, if it can be part of a path or a label. what: where it stands, such as model_pair.name. Raises UserError."""
    if not PLAIN_NAME.fullmatch(text):
        raise UserError(f"{what} {clip(text)!r} is no plain name: use up to 100 letters, digits and . _ - + (not first).")
    return text


class Stopped(KeyboardInterrupt):
    """Asked to end by another signal than Ctrl-C's, and to be treated alike."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextmanager
def stopping_quietly() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise Stopped, so that what is being written is finished or removed.

    One that is ignored, as under nohup, stays ignored.
    """

    def stop(number: int, frame) -> None:
        raise Stopped(number)

    own = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if own and signal.getsignal(each) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def exit_code_of(error: BaseException, speaker: str = "", folder_choice: str = "results=FOLDER") -> int:
    """Print the sentence for what the user can correct and return the exit code; raises a defect again, for its traceback.

    2 for bad input, 130 for Ctrl-C, 128 and its number for another signal, 0 where the reader of our output (head, less) has
    seen enough. speaker: put in front of the sentence. folder_choice: the setting that names another folder to write to.
    """
    if isinstance(error, OSError) and error.filename == STDOUT:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in its buffer goes nowhere
        if isinstance(error, BrokenPipeError):
            return 0
    if isinstance(error, KeyboardInterrupt):
        sentence = str(error) or "Interrupted; what was written is kept, and the same command continues from there."
        print(f"{speaker}{sentence}", file=sys.stderr)
        return 128 + error.number if isinstance(error, Stopped) else INTERRUPTED
    sentence = explain(error, folder_choice)
    if sentence is None:
        raise error
    print(printable(f"{speaker}{sentence}").replace("\n", "\\n"), file=sys.stderr)
    return BAD_INPUT


def explain(error: BaseException, folder_choice: str = "results=FOLDER") -> str | None:
    """The sentence for an error that a user can correct; None for one that is a defect and deserves its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return explain_group(error)
    if isinstance(error, YAMLError):
        return explain_yaml(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_override(error)
    if isinstance(error, OSError) and error.filename == STDOUT:
        return f"Standard output cannot be written ({error.strerror}); what was written to files is kept."
    if isinstance(error, OSError) and error.errno in FOLDER_ERRORS:
        what, why = error.filename or "the results", os.strerror(error.errno)  # a library's own words may be others
        return (
            f"Cannot write {what} ({why}): free some space or choose another folder with {folder_choice}; what was written "
            "is kept."
        )
    return None


def explain_yaml(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}," if mark else getattr(error, "name", "A config file")
    reason = getattr(error, "problem", None) or getattr(error, "reason", type(error).__name__)
    return f"{place} is no YAML ({reason}): correct it."


def explain_group(error: MissingConfigException) -> str:
    """An unknown name in a config group, such as policy=gamatune."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = list_options(group) if group else []
    if not options:
        return f"{error.missing_cfg_file or 'A config'} is missing from {CONFIGS}: install gammatune again."
    return f"{group}={name} is not known: choose one of {', '.join(options)}."


def list_options(group: str) -> list[str]:
    """The choices of a group: files, and classes that were registered. Hydra names none for a value inside a list."""
    store, names = ConfigStore.instance(), {file.name for file in (CONFIGS / group).glob("*.yaml")}
    if store.get_type(group) is ObjectType.GROUP:
        names |= {name for name in store.list(group) if name.endswith(".yaml")}  # the others are groups below this one
    return sorted(name.removesuffix(".yaml") for name in names)


def explain_override(error: Exception) -> str:
    """An unknown key (with the valid ones) or a value of the wrong type."""
    cause = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"{' '.join(str(error).split()).rstrip('.')}."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent, _, key = str(cause.full_key).rpartition(".")
        return unknown_setting(parent, key, [str(name) for name in cause.parent_node or [] if name != "hydra"])
    first_line = re.sub(r"\S{100,}", lambda found: clip(found[0]), str(cause).splitlines()[0])
    return f"{as_written(str(cause.full_key or 'A setting'))} is wrong: {first_line.rstrip('.')}."


def unknown_setting(parent: str, key: str, valid: list[str]) -> str:
    return f"{as_written(parent) or 'The run'} has no setting {key}: choose one of {', '.join(valid)}."


def write_as(key: str, written: str) -> None:
    """From now on, sentences call a config key what the user called it."""
    WRITTEN[key] = written


def as_written(key: str) -> str:
    """policy.Halving.gamma as the policy.my_module.Halving.gamma of the command line; any other key as it is."""
    for short, written in WRITTEN.items():
        if f"{key}.".startswith(f"{short}."):
            return written + key.removeprefix(short)
    return key
