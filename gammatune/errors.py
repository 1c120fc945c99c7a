"""Errors as one sentence each: what is wrong, what is valid, what to do."""

import errno
import os
import sys
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent / "configs"
FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
INTERRUPTED = "Interrupted; what was written is kept, and the same command continues from there."


class UserError(Exception):
    """Bad input, a missing file or an unusable folder; entry points print the sentence and exit with code 2."""


def complain(error: BaseException, speaker: str = "", choice: str = "results=FOLDER") -> int:
    """What ends a command as one sentence on stderr and its exit code; raises any other error again, for its traceback.

    2: the user can fix it. 130: interrupted. 0: the reader of the output (head, less) went away. choice: how another output
    folder is chosen.
    """
    if isinstance(error, BrokenPipeError):
        # Python would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):
        print(f"gammatune: {str(error) or INTERRUPTED}", file=sys.stderr)
        return 130
    sentence = explain(error, choice)
    if sentence is None:
        raise error
    print(f"{speaker}{sentence}", file=sys.stderr)
    return 2


def explain(error: BaseException, choice: str = "results=FOLDER") -> str | None:
    """The sentence for an error that a user can fix; None for one that is a defect and deserves its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return explain_group(error)
    if isinstance(error, OverrideParseException):
        return f"The argument {error.override} cannot be read: write key=value, lists as key=[a,b], without spaces."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_override(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "null is no choice for a config group: name one of the files under configs/GROUP, or leave the argument out."
    if isinstance(error, OSError) and error.errno in FOLDER_ERRORS:
        return (
            f"Cannot write {error.filename or 'the results'} ({error.strerror}): make room or choose another folder "
            f"with {choice}; complete answers already written are kept."
        )
    return None


def explain_group(error: MissingConfigException) -> str:
    """An unknown name in a config group, such as policy=gamatune."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or []) or list_options(group)
    return f"{group}={name} is not known: choose one of {', '.join(options)}."


def list_options(group: str) -> list[str]:
    """Hydra names the options only for single values, not inside a list such as policy=[fixed,foo]."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def explain_override(error: Exception) -> str:
    """An unknown key (with the valid ones) or a value of the wrong type."""
    cause = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return " ".join(str(error).split())
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent, _, key = str(cause.full_key).rpartition(".")
        valid = [str(name) for name in cause.parent_node or [] if name != "hydra"]
        return f"{parent or 'The run'} has no setting {key}: choose one of {', '.join(valid)}."
    first_line = str(cause).splitlines()[0]
    return f"{cause.full_key or 'A setting'} is wrong: {first_line.rstrip('.')}."
