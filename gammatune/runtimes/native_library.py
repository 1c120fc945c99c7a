"""Compile llama_step.cpp for this processor, once, and load it."""

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
from gammatune.machine import cache_dir

SOURCE = Path(__file__).with_name("llama_step.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared")
COMPILERS = ("g++", "clang++", "c++")


class NoLibraryError(Exception):
    """Says in a few words why there is no library."""


@cache
def load_library() -> ctypes.CDLL:
    """The compiled passes. Raises NoLibraryError where there is no C++ compiler with OpenMP or its work cannot be kept."""
    try:
        return ctypes.CDLL(str(compile_once(find_compiler(), cache_dir())))
    except (OSError, UserError) as error:
        raise NoLibraryError(f"the C++ step cannot be loaded: {error}") from error


def find_compiler() -> str:
    """$CXX, else the first known compiler on the path."""
    for name in (os.environ.get("CXX"), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoLibraryError("there is no C++ compiler (g++ or clang++) for the C++ step")


def compile_once(compiler: str, folder: Path) -> Path:
    """The library in `folder`, compiled if it is not there yet: a few seconds. Safe to call from several processes."""
    path = folder / f"llama_step-{name_build(compiler)}.so"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            partial = path.with_suffix(".partial")
            command = [compiler, *FLAGS, "-o", str(partial), str(SOURCE)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                words = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise NoLibraryError(f"{Path(compiler).name} cannot compile the C++ step: {words}")
            partial.replace(path)
    return path


def name_build(compiler: str) -> str:
    """A hash of everything that decides what is compiled: source, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], check=False, capture_output=True, text=True).stdout
    parts = SOURCE.read_text(), FLAGS, version, processor_features(), platform.platform()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def processor_features(file: Path = Path("/proc/cpuinfo")) -> str:
    """What -march=native looks at, since a cache folder may be shared by different machines."""
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join(sorted(set(named))) or platform.processor()
