import errno
import os
from pathlib import Path

import pytest

from fq_toolkit.training import atomic
from fq_toolkit.training.errors import RunError


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic.write_atomic(target, b"one")
    atomic.write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "error")],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    target = tmp_path / "file"
    atomic.write_atomic(target, b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match=words) as caught:
        atomic.write_atomic(target, b"new")
    assert str(target) in str(caught.value)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        atomic.write_atomic(tmp_path / "absent" / "file", b"x")


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic.whole_folder(tmp_path / "m") as part:
        (part / "x").write_text("old")
    rename = os.rename

    def fails_the_second_time(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise PermissionError(13, "no")
        rename(source, target)

    monkeypatch.setattr("os.rename", fails_the_second_time)
    with (
        pytest.raises(RunError, match="permission denied"),
        atomic.whole_folder(tmp_path / "m", replaces="x") as part,
    ):
        (part / "x").write_text("new")
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m" / "x").read_text() == "old"


@pytest.mark.parametrize("end", ["tmp", "old"])
def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path, end: str) -> None:
    """In a container the number of the process is the same each time."""
    for left in (tmp_path / f".m.{os.getpid()}.{end}", tmp_path / "m"):
        left.mkdir()
        (left / "x").write_text("old")
    for number in range(2):
        with atomic.whole_folder(tmp_path / "m", replaces="x") as part:
            (part / "x").write_text(str(number))
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
        assert (tmp_path / "m" / "x").read_text() == str(number)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m").symlink_to("elsewhere", target_is_directory=True)
    for text in ("first", "second"):
        with atomic.whole_folder(tmp_path / "m", replaces="x") as part:
            (part / "x").write_text(text)
        assert (tmp_path / "m").is_symlink()
        assert (tmp_path / "elsewhere" / "x").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "m"]
