"""The compiled C++ step in the cache: loaded only as it was compiled, and only where nobody else can write."""

import os
import stat
import subprocess

import pytest

from gammatune.runtimes import native_library
from gammatune.runtimes.native_library import NoLibraryError

try:
    COMPILER = native_library.find_compiler()
except NoLibraryError as missing:
    pytest.skip(str(missing), allow_module_level=True)

PASSES = "".join(f'extern "C" bool {name}() {{ return true; }}\n' for name in native_library.PASSES)
SOMEBODY = 65534


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder, and in place of the C++ step one that compiles in a moment."""
    folder, source = tmp_path / "cache", tmp_path / "step.cpp"
    folder.mkdir(mode=0o700)
    source.write_text(PASSES)
    monkeypatch.setattr(native_library, "SOURCE", source)
    monkeypatch.setattr(native_library, "FLAGS", ("-fPIC", "-shared"))
    return folder


@pytest.fixture
def evil(tmp_path):
    """A library with the right passes that leaves a mark when it is loaded."""
    source, library = tmp_path / "evil.cpp", tmp_path / "evil.so"
    mark = f'#include <cstdio>\n__attribute__((constructor)) void run() {{ fclose(fopen("{tmp_path}/RAN", "w")); }}\n'
    source.write_text(mark + PASSES)
    subprocess.run([COMPILER, "-fPIC", "-shared", "-o", library, source], check=True)
    return library


def fetch(cache):
    """The library's path, after it was fetched."""
    native_library.fetch_library(COMPILER, cache)
    return next(cache.glob("*.so"))


def test_it_is_compiled_once_for_this_user_alone(cache, monkeypatch):
    before = os.umask(0)  # the loosest, so that the compiler would leave a library that everybody may write
    path = fetch(cache)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    monkeypatch.setattr(native_library, "compile_library", lambda *_: pytest.fail("compiled again"))
    assert fetch(cache) == path
    monkeypatch.setattr(native_library, "processor_features", lambda: "another processor")
    assert native_library.name_build(COMPILER) not in path.name


@pytest.mark.parametrize("harm", ["cut", "no manifest", "wrong manifest", "damaged manifest", "writable", "link", "owner"])
def test_what_is_not_as_it_was_compiled_is_compiled_again_and_not_loaded(cache, evil, tmp_path, harm):
    path = fetch(cache)
    good, manifest = path.read_bytes(), path.with_suffix(".json")
    path.unlink()
    path.write_bytes(evil.read_bytes())
    path.chmod(0o700)
    if harm == "cut":
        path.write_bytes(good[:100])
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "damaged manifest":
        manifest.write_text("{")
    elif harm in ("writable", "link", "owner"):
        native_library.write_json(manifest, {"sha256": native_library.hash_file(path)})
        if harm == "writable":
            path.chmod(0o722)
        elif harm == "link":
            path.rename(tmp_path / "elsewhere.so")
            path.symlink_to(tmp_path / "elsewhere.so")
        elif os.geteuid():
            pytest.skip("only root can give files away")
        else:
            os.chown(path, SOMEBODY, SOMEBODY)
    assert fetch(cache) == path and path.read_bytes() == good and not path.is_symlink()
    assert native_library.is_as_compiled(path)
    assert not (tmp_path / "RAN").exists()


def test_a_mark_is_left_by_a_library_that_is_loaded(evil, tmp_path):
    """The control of the test above."""
    native_library.open_library(evil)
    assert (tmp_path / "RAN").exists()


@pytest.mark.parametrize("harm", ["writable", "owner"])
def test_a_folder_that_others_can_write_is_not_used(cache, harm):
    if harm == "writable":
        cache.chmod(0o1777)
    elif os.geteuid():
        pytest.skip("only root can give folders away")
    else:
        os.chown(cache, SOMEBODY, SOMEBODY)
    reason = {"writable": "can be written by other users", "owner": "belongs to another user .number 65534."}[harm]
    with pytest.raises(NoLibraryError, match=f"cache folder {cache} {reason}: .* set GAMMATUNE_CACHE to"):
        fetch(cache)
    assert not list(cache.iterdir())


def test_a_link_to_the_users_own_folder_is_followed(cache, tmp_path):
    (tmp_path / "link").symlink_to(cache)
    assert fetch(tmp_path / "link").exists() and list(cache.glob("*.so"))


def test_a_library_without_the_passes_is_refused(cache):
    native_library.SOURCE.write_text('extern "C" bool other() { return true; }\n')
    with pytest.raises(NoLibraryError, match="lacks forward_float32"):
        fetch(cache)
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("printf 'cannot do that \\377\\n' >&2; exit 1", "broken cannot compile the C\\+\\+ step: cannot do that"),
        ("exit 0", "broken cannot compile the C\\+\\+ step: no message"),
        ("exec sleep 9", "timed out after"),
    ],
)
def test_a_compiler_that_fails_is_quoted(cache, monkeypatch, tmp_path, script, words):
    (tmp_path / "broken").write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}\n')
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "broken"))
    monkeypatch.setenv("GAMMATUNE_CACHE", str(cache))
    monkeypatch.setattr(native_library, "COMPILE_S", 0.2)
    native_library.load_library.cache_clear()
    with pytest.raises(NoLibraryError, match=words) as caught:
        native_library.load_library()
    native_library.load_library.cache_clear()
    assert "\n" not in str(caught.value)
