"""What this machine offers: a folder for fetched files, and cores."""

import os
from pathlib import Path

from gammatune.errors import UserError


def cache_dir() -> Path:
    """The user's cache folder, made if needed: $GAMMATUNE_CACHE, else $XDG_CACHE_HOME/gammatune, else ~/.cache/gammatune.

    Raises UserError when it cannot be made.
    """
    own, shared = os.environ.get("GAMMATUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "gammatune"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be made ({error.strerror}): set GAMMATUNE_CACHE to a folder that "
            "can be written."
        ) from error
    return folder


def available_cores() -> int:
    """Cores that this process may use; all of them where the system does not say which those are (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
