"""Files of features as they are in the field: wider, with odd names, and with numbers that are none."""

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import DataError, FeatureStore, MiniWorld, NavWorld

h5py = pytest.importorskip("h5py")
WIDTH = 12  # of which 8 are features


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder of R2R files, graphs, and features of 8 columns before 4 of something else."""
    world = MiniWorld(3, num_scans=1, feature_dim=WIDTH)
    records = json.loads(world.write(tmp_path, 20, instructions=1).read_text())
    unique = list({tuple(record["path"]): record for record in records}.values())
    starts = [unique[0], *(r for r in unique[1:] if not {*r["path"]} >= {*unique[0]["path"]})]
    (tmp_path / "R2R_val_seen.json").write_text(json.dumps(starts[:1]))
    (tmp_path / "R2R_train.json").write_text(json.dumps(starts[1:9]))
    if not list(tmp_path.glob("*_connectivity.json")):
        world.to_connectivity_json(tmp_path)
    return tmp_path


def write(folder: Path, kind: str, spoil: float | None = None) -> Path:
    store = MiniWorld(3, num_scans=1, feature_dim=WIDTH).features()
    array = store.panorama(np.arange(len(store))).astype(np.float32)
    if spoil is not None:
        array[:, 7, 2] = spoil
    names = ["_".join(key) for key in store.keys]
    path = folder / f"features.{kind}"
    if kind == "npz":
        np.savez(path, keys=np.array(names), features=array)
    elif kind == "hdf5":
        with h5py.File(path, "w") as file:
            for name, row in zip(names, array, strict=True):
                file[name] = row
    return path


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_the_first_columns_are_the_features(files: Path, kind: str) -> None:
    path = write(files, kind)
    load = FeatureStore.from_npz if kind == "npz" else FeatureStore.from_hdf5
    whole, part = load(path), load(path, columns=8)
    rows = np.arange(3)
    assert (whole.dim, part.dim) == (WIDTH, 8)
    np.testing.assert_array_equal(part.panorama(rows), whole.panorama(rows)[:, :, :8])
    with pytest.raises(DataError, match="--feature-columns asks for the first 13"):
        load(path, columns=13)
    with pytest.raises(DataError, match=r"--feature-dim 12.*--feature-columns"):
        load(path, dim=8)


@pytest.mark.parametrize("trainer", ["r2r", "speaker", "prevalent"])
def test_the_width_is_that_of_the_file(files: Path, trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(files, "hdf5")
    start = ["train", trainer, "--data", str(files), "--connectivity", str(files), "--features", str(path)]
    small = ["--steps", "1", "--batch-size", "2", "--device", "cpu"]
    for number, more in enumerate(([], ["--feature-columns", "8"])):
        run = files / f"run{number}"
        assert main([*start, *small, *more, "--out", str(run)]) == 0
        assert main(["evaluate", str(run)]) == 0
    assert main([*start, *small, "--feature-dim", "8", "--out", str(files / "no")]) == 1
    assert "--feature-columns" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["r2r", "speaker", "prevalent"])
@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_numbers_that_are_none_are_found_before_the_first_step(
    files: Path, trainer: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(files, kind, np.nan)
    words = ["train", trainer, "--data", str(files), "--connectivity", str(files), "--features", str(path)]
    assert main([*words, "--steps", "1", "--batch-size", "2", "--out", str(files / "run")]) == 1
    error = capsys.readouterr().err
    assert path.name in error
    assert "finite" in error


def test_the_viewpoint_is_named(files: Path) -> None:
    for kind in ("npz", "hdf5"):
        store = getattr(FeatureStore, f"from_{kind}")(write(files, kind, np.inf))
        with pytest.raises(DataError, match=rf"features\.{kind}.*{'_'.join(store.keys[5])}.*finite"):
            store.check(store.keys[5:])


def test_names_are_split_where_the_world_knows_the_scan(tmp_path: Path) -> None:
    def world(*scans: str) -> NavWorld:
        graph = nx.Graph([("room_1", "room_2")])
        nx.set_node_attributes(graph, {"room_1": (0, 0, 0), "room_2": (0, 3, 0)}, "position")
        return NavWorld.from_networkx(dict.fromkeys(scans, graph))

    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as file:
        file["my_house_room_1"] = np.ones((36, 4), np.float32)
    assert FeatureStore.from_hdf5(path).keys == [("my_house_room", "1")]
    assert FeatureStore.from_hdf5(path, world=world("my_house")).keys == [("my_house", "room_1")]
    both = FeatureStore.from_hdf5(path, world=world("my", "my_house"))
    assert both.keys == [("my_house", "room_1")]


def test_opening_reads_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 200,000 takes 50 us and more."""
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(50):
            file[f"s_{number}"] = np.ones((36, 2), np.float32)
    asked: list[Any] = []
    shape = h5py.Dataset.shape
    monkeypatch.setattr(
        h5py.Dataset, "shape", property(lambda self: asked.append(self.name) or shape.fget(self))
    )
    store = FeatureStore.from_hdf5(path)
    assert (len(store), len(asked)) == (50, 1)


@pytest.mark.parametrize("trainer", ["r2r", "speaker"])
def test_a_folder_without_validation_is_said(
    files: Path, trainer: str, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "R2R_val_seen.json").unlink()
    words = ["train", trainer, "--data", str(files), "--connectivity", str(files), "--steps", "1"]
    assert main([*words, "--feature-dim", "8", "--batch-size", "2", "--out", str(files / "run")]) == 0
    assert "R2R_val_seen.json nor R2R_val_unseen.json to validate on" in caplog.text
