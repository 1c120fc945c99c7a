"""What this machine offers: a folder for fetched files, cores, and whether they are free."""

import os
import platform
import stat
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from gammatune.errors import UserError


def cache_dir() -> Path:
    """The user's cache folder: $GAMMATUNE_CACHE, else $XDG_CACHE_HOME/gammatune, else ~/.cache/gammatune.

    Made if needed, for the user alone; one that exists keeps its permissions. Raises UserError when it cannot be made.
    """
    own, shared = os.environ.get("GAMMATUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    place, remedy = own or f"{shared or '~/.cache'}/gammatune", "set GAMMATUNE_CACHE to a folder that can be written"
    try:
        folder = Path(place).expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The cache folder {place} cannot be made ({error.strerror}): {remedy}.") from error
    except RuntimeError as error:
        raise UserError(f"The cache folder {place} cannot be found (this user has no home folder): {remedy}.") from error
    return folder


def find_distrust(path: Path) -> str | None:
    """Why another user may have written what lies at `path`, in words to put after its name; None where nobody else can.

    Only this user and root are trusted.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (number {status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None


def available_cores() -> int:
    """Cores that this process may use; all of them where the system does not say which those are (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def name_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
