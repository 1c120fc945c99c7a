"""The cache folder: made for its user alone, and left as it is where it exists."""

import os
import stat

import pytest

from gammatune.errors import UserError
from gammatune.machine import cache_dir


def test_it_is_made_for_the_user_alone_and_one_that_exists_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "new"))
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o700
    (tmp_path / "new").chmod(0o755)
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o755


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("GAMMATUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123456)  # a number that has no name here, as in some containers
    with pytest.raises(UserError, match="no home folder.: set GAMMATUNE_CACHE"):
        cache_dir()
