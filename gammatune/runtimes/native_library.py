"""Compile llama_step.cpp for this processor, once, and load it.

A library is code: it is loaded only from a cache folder that nobody else can write, and only as this module compiled it.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from filelock import FileLock

from gammatune.errors import UserError
from gammatune.files import hash_file, read_json, write_json
from gammatune.machine import cache_dir, find_distrust

SOURCE = Path(__file__).with_name("llama_step.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared")
COMPILERS = ("g++", "clang++", "c++")
PASSES = ("forward_float32", "forward_bfloat16")  # what the library holds
COMPILE_S = 300  # a compiler that takes longer hangs


class NoLibraryError(Exception):
    """Says in a few words why there is no library."""


@cache
def load_library() -> ctypes.CDLL:
    """The compiled passes. Raises NoLibraryError where there is no C++ compiler with OpenMP, its work cannot be kept, or
    others could change it."""
    try:
        return fetch_library(find_compiler(), cache_dir())
    except (OSError, UserError, subprocess.TimeoutExpired) as error:
        raise NoLibraryError(f"the C++ step cannot be loaded: {str(error).rstrip('.')}") from error


def find_compiler() -> str:
    """$CXX, else the first known compiler on the path."""
    for name in (os.environ.get("CXX"), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoLibraryError("there is no C++ compiler (g++ or clang++) for the C++ step")


def fetch_library(compiler: str, folder: Path) -> ctypes.CDLL:
    """The library in `folder`, compiled where it is not there, or not as it was compiled: a few seconds.

    Safe to call from several processes.
    """
    folder = folder.resolve()
    distrust = find_distrust(folder)
    if distrust:
        remedy = "make it writable for you alone, or set GAMMATUNE_CACHE to a folder of your own"
        raise NoLibraryError(f"others could change the C++ step, since the cache folder {folder} {distrust}: {remedy}")
    path = folder / f"llama_step-{name_build(compiler)}.so"
    if is_as_compiled(path):
        return open_library(path)
    with FileLock(path.with_suffix(".lock")):
        if not is_as_compiled(path):  # else another process has compiled it meanwhile
            compile_library(compiler, path)
        return open_library(path)


def is_as_compiled(path: Path) -> bool:
    """Whether this is the very file that `compile_library` left."""
    try:
        if find_distrust(path) is not None:
            return False
        return read_json(path.with_suffix(".json"), remedy="compile again").get("sha256") == hash_file(path)
    except (OSError, UserError):
        return False


def compile_library(compiler: str, path: Path) -> None:
    """Write the library and, once it has shown that it can be opened, its checksum beside it."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    done = run_compiler([compiler, *FLAGS, "-o", str(partial), str(SOURCE)])
    if done.returncode or not partial.is_file():
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NoLibraryError(f"{Path(compiler).name} cannot compile the C++ step: {words}")
    partial.chmod(0o700)  # whatever the umask is
    partial.replace(path)
    open_library(path)
    write_json(path.with_suffix(".json"), {"sha256": hash_file(path)})


def open_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    missing = [name for name in PASSES if not hasattr(library, name)]
    if missing:
        raise NoLibraryError(f"the compiled C++ step {path} lacks {missing[0]}")
    return library


def run_compiler(command: list[str]) -> subprocess.CompletedProcess:
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(command, check=False, timeout=COMPILE_S, **settings)


def name_build(compiler: str) -> str:
    """A hash of everything that decides what is compiled: source, flags, compiler, processor."""
    version = run_compiler([compiler, "--version"]).stdout
    parts = SOURCE.read_text(), FLAGS, version, processor_features(), platform.platform()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def processor_features(file: Path = Path("/proc/cpuinfo")) -> str:
    """What -march=native looks at, since a cache folder may be shared by different machines."""
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join(sorted(set(named))) or platform.processor()
