"""The splits of R2R: ablations, and mistakes that are named."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fq_toolkit.prevalent import DataError, MiniWorld
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig, preset
from fq_toolkit.prevalent.tasks.r2r.data import load_r2r_data, shuffle_instructions
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER, R2RTask
from fq_toolkit.prevalent.tasks.runs import load_navigator
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.session import make_accelerator
from tests.prevalent.tasks.r2r.small import TINY


def test_ablations_change_only_what_they_name() -> None:
    plain = load_r2r_data(TINY)
    blind = load_r2r_data(dataclasses.replace(TINY, blind=True))
    mixed = load_r2r_data(dataclasses.replace(TINY, shuffle_instructions=True))
    for name, split in plain.validation.items():
        assert blind.validation[name].items == split.items
        store = blind.validation[name].features
        assert not store.panorama(torch.arange(len(store)).numpy()).any()
        shuffled = mixed.validation[name].items
        assert [item.path for item in shuffled] == [item.path for item in split.items]
        assert sorted(item.instruction for item in shuffled) == sorted(
            item.instruction for item in split.items
        )
    items = MiniWorld(3).items(9)
    pairs = zip(items, shuffle_instructions(items, seed=1), strict=True)
    assert all(a.instruction != b.instruction for a, b in pairs)


def test_validation_paths_are_not_trained_on() -> None:
    data = load_r2r_data(TINY)
    known = {(item.scan, item.path) for item in data.train.items}
    for split in data.validation.values():
        assert not known & {(item.scan, item.path) for item in split.items}
    assert not set(data.train.world.names) & set(data.validation["val_unseen"].world.names)


def test_mistakes_are_named(tmp_path: Path) -> None:
    world = MiniWorld(4, num_scans=1)
    train_file = world.write(tmp_path / "data", 6, instructions=1).rename(tmp_path / "data/R2R_train.json")
    config = R2RConfig(data=str(tmp_path / "data"), connectivity=str(tmp_path / "data"), feature_dim=8)
    (tmp_path / "data/R2R_val_unseen.json").write_text(train_file.read_text())
    with pytest.raises(DataError, match=r"R2R_train\.json: item '.*_0' has the path of the held-out item"):
        load_r2r_data(config)
    (tmp_path / "data/R2R_val_unseen.json").unlink()
    assert load_r2r_data(config).train.synthesised
    short = dataclasses.replace(config, max_tokens=3)
    with pytest.raises(
        DataError, match=r"R2R_train\.json: instruction '.*_0' has .* more than the limit of 3"
    ):
        R2RTask(short, load_r2r_data(short), make_accelerator(short))
    with pytest.raises(DataError, match=r"missing|no scan|scans\.txt|nowhere"):
        load_r2r_data(dataclasses.replace(config, connectivity=str(tmp_path / "nowhere")))
    train_file.write_text(train_file.read_text()[:-40])
    with pytest.raises(DataError, match=r"R2R_train\.json"):
        load_r2r_data(config)
    for wrong, message in (
        ({"a2c_from": 2.0}, "a2c_from"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"connectivity": "x"}, "connectivity belongs"),
        ({"speaker": "x", "shuffle_instructions": True}, "do not go together"),
    ):
        with pytest.raises(ConfigError, match=message):
            R2RConfig(**wrong)
    with pytest.raises(ConfigError, match="unknown preset 'min'"):
        preset("min")
    with pytest.raises(RunError, match="not a run folder"):
        load_navigator(R2R_TRAINER, tmp_path)
