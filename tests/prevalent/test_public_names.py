"""Public objects go to other processes, and errors of data files are those of a run and of a value."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import fq_toolkit.prevalent as prevalent
from fq_toolkit.prevalent import BatchedNavEnv, FeatureStore, MiniWorld, NavWorld
from fq_toolkit.training.errors import RunError


def test_worlds_and_features_go_to_other_processes(tmp_path: Path, mini: MiniWorld) -> None:
    annotated = mini.write(tmp_path, 2)
    assert annotated.exists()
    world = pickle.loads(pickle.dumps(NavWorld.from_connectivity(tmp_path)))
    rows = np.arange(3)
    for store in (mini.features(), FeatureStore.synthetic(world, dim=4)):
        again = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(again.panorama(rows), store.panorama(rows))
    path = tmp_path / "f.hdf5"
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        file["s_a"] = np.ones((36, 4))
    store = FeatureStore.from_hdf5(path)
    store.panorama(np.array([0]))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(store)).panorama(np.array([0])), np.ones((1, 36, 4))
    )
    assert BatchedNavEnv(pickle.loads(pickle.dumps(mini))).reset(mini.items(1)).viewpoints


def test_a_bad_data_file_is_an_error_of_the_run_and_of_a_value() -> None:
    assert issubclass(prevalent.DataError, RunError)  # the command line prints those in a sentence
    assert issubclass(prevalent.DataError, ValueError)
