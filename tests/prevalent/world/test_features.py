"""Feature files: what is read is what was written, and what is wrong is named."""

import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, FeatureStore, MiniWorld
from fq_toolkit.training.errors import MissingExtraError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def panoramas(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return float32 (count, 36, dim) that float16 holds exactly."""
    return np.random.default_rng(seed).standard_normal((count, 36, dim)).astype(np.float16).astype(np.float32)


def tsv_line(scan: str, viewpoint: str, panorama: np.ndarray) -> str:
    return (
        "\t".join([scan, viewpoint, "640", "480", "60", base64.b64encode(panorama.tobytes()).decode()]) + "\n"
    )


def write_tsv(path: Path, array: np.ndarray) -> Path:
    path.write_text("".join(tsv_line("s_1", f"v{i}", panorama) for i, panorama in enumerate(array)))
    return path


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def check_same(store: FeatureStore, array: np.ndarray) -> None:
    rows = store.rows([("s_1", f"v{i}") for i in range(len(array))])
    assert (len(store), store.dim) == (len(array), array.shape[2])
    np.testing.assert_array_equal(store.panorama(rows), array)
    views = np.random.default_rng(0).integers(36, size=(len(array), 5))
    np.testing.assert_array_equal(store.views(rows, views), array[np.arange(len(array))[:, None], views])
    assert store.panorama(rows).dtype == store.views(rows, views).dtype == np.float32


@given(count=st.integers(1, 4), dim=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_every_kind_of_file_gives_back_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, count: int, dim: int, seed: int
) -> None:
    folder, array = tmp_path_factory.mktemp("files"), panoramas(count, dim, seed)
    store = FeatureStore.from_tsv(write_tsv(folder / "f.tsv", array), dim=dim)
    check_same(store, array)
    check_same(FeatureStore.from_npz(store.save_npz(folder / "f.npz"), dim=dim), array)


def test_hdf5(tmp_path: Path) -> None:
    array = panoramas(3, 7)
    path = write_hdf5(tmp_path / "f.hdf5", {f"s_1_v{i}": array[i] for i in range(3)})
    check_same(FeatureStore.from_hdf5(path, dim=7), array)
    check_same(FeatureStore.from_npz(FeatureStore.from_hdf5(path).save_npz(tmp_path / "f.npz")), array)


def test_npz_is_mapped_and_half_the_size(tmp_path: Path) -> None:
    store = FeatureStore([("s", "a"), ("s", "b")], panoramas(2, 8))
    path = store.save_npz(tmp_path / "f.npz")
    again = FeatureStore.from_npz(path)
    assert isinstance(again._array, np.memmap)
    assert again._array.dtype == np.float16
    with np.load(path) as plain:  # any numpy reads it
        np.testing.assert_array_equal(plain["features"], store.panorama(np.arange(2)).astype(np.float16))
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        store.save_npz(tmp_path / "f.bin")


def test_synthetic_features_depend_on_seed_and_name_only(mini: MiniWorld) -> None:
    first, again, other = (FeatureStore.synthetic(mini, dim=8, seed=seed) for seed in (0, 0, 1))
    rows = first.rows([(mini.names[1], viewpoint) for viewpoint in mini.scan(mini.names[1]).viewpoints])
    one_by_one = np.concatenate([again.panorama(rows[i : i + 1]) for i in reversed(range(len(rows)))])[::-1]
    np.testing.assert_array_equal(first.panorama(rows), one_by_one)
    assert not np.isclose(first.panorama(rows), other.panorama(rows)).all(axis=(1, 2)).any()
    assert abs(first.panorama(rows).mean()) < 0.05
    assert first.panorama(rows).std() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        FeatureStore.synthetic(mini, dim=0)


def test_few_rows_are_kept(mini: MiniWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fq_toolkit.prevalent.world.features._KEPT_ROWS", 3)
    store = FeatureStore.synthetic(mini, dim=4)
    store.panorama(np.arange(10))
    assert list(store._recent) == [7, 8, 9]


@pytest.mark.parametrize("kind", ["tsv", "npz", "hdf5"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, "is a git-LFS pointer"), ("", "is empty"), (None, "does not exist"), ("nonsense", "truncated")],
)
def test_files_that_are_no_features(tmp_path: Path, kind: str, content: str | None, message: str) -> None:
    if kind == "hdf5":
        pytest.importorskip("h5py", reason="h5py is not installed")
    path = tmp_path / f"features.{kind}"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=rf"features\.{kind}.*{message}"):
        getattr(FeatureStore, f"from_{kind}")(path)


def test_a_truncated_tsv_names_line_and_viewpoint(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "f.tsv", panoramas(3, 4))
    whole = path.read_text()
    end = whole.rindex("\t")
    for cut, message in (
        (end + 42, "line 3, viewpoint s_1_v2: features are not base64"),
        (end + 45, "line 3, viewpoint s_1_v2: features have 33 bytes"),
        (end - 9, "line 3 has"),
    ):
        path.write_text(whole[:cut])
        with pytest.raises(DataError, match=rf"f\.tsv: {message}.*truncated"):
            FeatureStore.from_tsv(path)


def test_a_truncated_npz_and_hdf5(tmp_path: Path) -> None:
    store = FeatureStore([("s", "a"), ("s", "b")], panoramas(2, 64))
    path = store.save_npz(tmp_path / "f.npz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"f\.npz is no readable npz .*truncated"):
        FeatureStore.from_npz(path)
    path = write_hdf5(tmp_path / "f.hdf5", {"s_a": panoramas(1, 64)[0]})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"f\.hdf5 is no readable HDF5 .*truncated"):
        FeatureStore.from_hdf5(path)


def test_another_width_is_named(tmp_path: Path) -> None:
    array = panoramas(2, 4)
    tsv = write_tsv(tmp_path / "f.tsv", array)
    npz = FeatureStore.from_tsv(tsv).save_npz(tmp_path / "f.npz")
    hdf5 = write_hdf5(tmp_path / "f.hdf5", {"s_a": panoramas(1, 4)[0]})
    for load, path in (
        (FeatureStore.from_tsv, tsv),
        (FeatureStore.from_npz, npz),
        (FeatureStore.from_hdf5, hdf5),
    ):
        with pytest.raises(DataError, match=rf"{path.name}.*features have width 4; expected 2048"):
            load(path, dim=2048)
    tsv.write_text(tsv.read_text() + tsv_line("s_1", "wide", panoramas(1, 5)[0]))
    with pytest.raises(DataError, match="line 3, viewpoint s_1_wide: features have width 5; expected 4"):
        FeatureStore.from_tsv(tsv)
    path = write_hdf5(tmp_path / "f.hdf5", {"s_a": panoramas(1, 4)[0], "s_b": panoramas(1, 5)[0]})
    with pytest.raises(DataError, match="dataset 's_b': features have width 5; expected 4"):
        FeatureStore.from_hdf5(path).check([("s", "b")])


def test_other_shapes_keys_and_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(2, 12, 4\); expected \(n, 36, D\)"):
        FeatureStore([("s", "a"), ("s", "b")], np.zeros((2, 12, 4)))
    with pytest.raises(DataError, match="1 keys for 2 rows"):
        FeatureStore([("s", "a")], np.zeros((2, 36, 4)))
    with pytest.raises(DataError, match="viewpoint s_a occurs twice"):
        FeatureStore([("s", "a"), ("s", "a")], np.zeros((2, 36, 4)))
    with pytest.raises(DataError, match="no features of viewpoint 'b' of scan 's'"):
        FeatureStore([("s", "a")], np.zeros((1, 36, 4))).rows([("s", "b")])
    path = tmp_path / "f.npz"
    np.savez_compressed(path, keys=np.array(["s_a"]), features=np.zeros((1, 36, 4), dtype=np.float16))
    with pytest.raises(DataError, match="is compressed and cannot be mapped"):
        FeatureStore.from_npz(path)
    np.savez(path, keys=np.array(["s_a"]), features=np.zeros((2, 36, 4), dtype=np.float16))
    with pytest.raises(DataError, match=r"shape \(2, 36, 4\); expected floats \(1, 36, D\)"):
        FeatureStore.from_npz(path)
    np.savez(path, keys=np.array(["sa"]), features=np.zeros((1, 36, 4), dtype=np.float16))
    with pytest.raises(DataError, match="key 'sa' is not of the form SCAN_VIEWPOINT"):
        FeatureStore.from_npz(path)
    path = write_hdf5(tmp_path / "f.hdf5", {"s_a": np.zeros((12, 4))})
    with pytest.raises(DataError, match=r"dataset 's_a' has shape \(12, 4\); expected \(36, D\)"):
        FeatureStore.from_hdf5(path)
    path = write_hdf5(tmp_path / "g.hdf5", {})
    with pytest.raises(DataError, match="holds no datasets"):
        FeatureStore.from_hdf5(path)


def test_without_h5py_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.hdf5").write_text("x")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(
        MissingExtraError, match=r"reading HDF5 features needs h5py.*pip install 'fq-toolkit\[vln\]'"
    ):
        FeatureStore.from_hdf5(tmp_path / "f.hdf5")
