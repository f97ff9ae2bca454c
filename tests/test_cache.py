"""Where the cache is, on machines without a home."""

import os
import stat
from pathlib import Path

import pytest

from fq_toolkit import cache


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("FQ_TOOLKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    cache.temporary_cache.cache_clear()
    yield
    cache.temporary_cache.cache_clear()


def test_the_variable_wins_and_a_home_is_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "fq-toolkit"
    monkeypatch.setenv("FQ_TOOLKIT_CACHE", "/chosen")
    assert cache.cache_folder() == Path("/chosen")


@pytest.mark.parametrize("home", [None, "/proc/nobody", "/dev/null"])
def test_without_a_home_there_is_one_folder_for_every_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    if home is None:

        def unknown(_: object = None) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(cache.Path, "home", unknown)
    else:
        monkeypatch.setenv("HOME", home)
        monkeypatch.setattr(cache.os, "access", lambda place, mode: str(tmp_path) in str(place))
    folder = cache.cache_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    cache.temporary_cache.cache_clear()
    assert cache.cache_folder() == folder


def test_a_folder_that_others_may_write_is_not_taken(tmp_path: Path) -> None:
    first = cache.temporary_cache()
    first.chmod(0o777)
    cache.temporary_cache.cache_clear()
    assert cache.temporary_cache() != first
    first.rmdir()
    os.symlink(tmp_path / "elsewhere", first)
    cache.temporary_cache.cache_clear()
    assert cache.temporary_cache() != first
