import errno
import os
from pathlib import Path

import pytest
import torch

from fq_toolkit.training.errors import CheckpointError, RunError
from fq_toolkit.training.storage.checkpoints import Checkpoints


def state(value: float) -> dict:
    return {"weights": torch.full((100,), value), "betas": (0.0, 0.999), "count": int(value)}


def test_the_newest_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [20, 30]
    assert len(os.listdir(checkpoints.folder)) == 4
    step, loaded = checkpoints.load()
    assert step == 30
    assert loaded["betas"] == (0.0, 0.999)
    assert torch.equal(loaded["weights"], torch.full((100,), 30.0))
    assert checkpoints.load(20).state["count"] == 20


def test_nothing_is_pickled(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    with pytest.raises(TypeError, match="neither tensor nor JSON"):
        checkpoints.save(2, {"model": object()})
    assert checkpoints.steps() == [1]


def test_what_a_kill_left_in_the_making_goes_with_the_next_save(tmp_path: Path) -> None:
    left = tmp_path / ".step_00000010.safetensors.4711.tmp"
    left.write_bytes(b"half")
    Checkpoints(tmp_path).save(20, state(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000020.json",
        "step_00000020.safetensors",
    ]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state(10))
    with pytest.raises(RunError, match="already has a checkpoint of step 10"):
        checkpoints.save(10, state(11))
    assert checkpoints.load().state["count"] == 10


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "flipped bit":
        content[-1] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "flipped bit", "gone"])
def test_damage_is_found_and_the_way_back_named(tmp_path: Path, suffix: str, how: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state(10))
    path = checkpoints.save(20, state(20)).with_suffix(suffix)
    damage(path, how)
    if (suffix, how) == (".json", "gone"):  # without its JSON a checkpoint was never completed
        assert checkpoints.load().step == 10
        return
    with pytest.raises(CheckpointError, match=r"step_00000020\..*go on from step 10"):
        checkpoints.load()
    assert checkpoints.load(10).state["count"] == 10


def test_damage_without_an_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    damage(checkpoints.save(10, state(10)), "truncated")
    with pytest.raises(CheckpointError, match=r"bytes instead of .* no older checkpoint"):
        checkpoints.load()


def test_missing_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.load()
    checkpoints.save(10, state(10))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .* \[10\]"):
        checkpoints.load(5)


@pytest.mark.parametrize("allowed", range(4), ids=lambda n: f"{n} syncs pass")
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """The disk fills at any of the syncs of a save: tensors, their folder, JSON, its folder."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state(10))
    real, calls = os.fsync, iter(range(100))

    def fsync(handle: int) -> None:
        if next(calls) >= allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=r"step 20 was not saved: .*disk is full.*step 10 is intact"):
        checkpoints.save(20, state(20))
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["step_00000010.json", "step_00000010.safetensors"]
    assert checkpoints.load().step == 10
    checkpoints.save(20, state(20))  # with space again, the same step can be saved
    assert checkpoints.load().step == 20


def test_a_full_disk_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state(10))
    monkeypatch.setattr("builtins.open", full_disk(open))
    with pytest.raises(RunError, match="disk is full"):
        checkpoints.save(20, state(20))
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["step_00000010.json", "step_00000010.safetensors"]
    assert checkpoints.load().step == 10


def full_disk(real_open):
    """Return an open() whose files take ten bytes and no more."""

    def fake(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        if "w" not in mode:
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                file.write(bytes(data[:10]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    return fake
