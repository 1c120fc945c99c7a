"""What this machine offers: a folder for fetched files, cores, and whether they are free."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

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


@dataclass
class LoadWatch:
    """The machine's load while something is timed: processes that could run, as a mean of the last minute."""

    loads: list[float] = field(default_factory=list)

    def note(self) -> None:
        """To be called every now and then while timing."""
        self.loads.append(os.getloadavg()[0])

    @property
    def median(self) -> float | None:
        return round(median(self.loads), 2) if self.loads else None

    def warning(self, what: str) -> str:
        """A sentence for times of a shared machine; empty where it was free. what: was timed, such as "prices"."""
        shared = describe_sharing(self.median, os.cpu_count())
        return f"The machine was shared ({shared}): {what} may be too high." if shared else ""


def describe_sharing(load: float | None, cores: int | None) -> str:
    """The load in words where others took part of the machine, empty where they did not or nobody knows.

    One process above the cores may be there: what is timed fills the cores itself.
    """
    shared = load is not None and isinstance(cores, int) and load > cores + 1
    return f"median load {load:.1f} on {cores} cores" if shared else ""
