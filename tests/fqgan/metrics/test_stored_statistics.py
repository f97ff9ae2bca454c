"""Frechet distances to statistics in files: what others write is read, and what we write others read."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from fq_toolkit.fqgan.metrics.frechet import StreamingMoments, frechet_distance
from fq_toolkit.fqgan.metrics.stored_statistics import load_statistics, save_statistics
from fq_toolkit.training.errors import ConfigError


def moments(seed: int, rows: int = 60, dim: int = 5) -> StreamingMoments:
    made = StreamingMoments(dim)
    made.update(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).double())
    return made


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_distance_to_a_file_is_that_of_pytorch_fid(tmp_path: Path, dtype: type) -> None:
    rows = np.random.default_rng(0).normal(size=(80, 5))
    mu, sigma = rows.mean(0).astype(dtype), np.cov(rows, rowvar=False).astype(dtype)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    ours = moments(1)
    covariance = ours.covariance().numpy()
    cross = scipy.linalg.sqrtm(covariance @ sigma.astype(np.float64)).real
    expected = ((ours.mean.numpy() - mu) ** 2).sum() + np.trace(covariance + sigma - 2 * cross)
    found = frechet_distance(load_statistics(tmp_path / "theirs.npz", dim=5), ours)
    assert found == pytest.approx(float(expected), rel=1e-6 if dtype is np.float32 else 1e-9)


def test_what_is_written_comes_back_and_is_read_by_others(tmp_path: Path) -> None:
    ours = moments(2)
    save_statistics(tmp_path / "ours.npz", ours)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as arrays:  # as pytorch-fid opens it
        assert sorted(arrays.files) == ["mu", "sigma"]
        assert arrays["mu"].tolist() == ours.mean.tolist()
    again = load_statistics(tmp_path / "ours.npz")
    assert torch.equal(again.mean, ours.mean)
    assert frechet_distance(again, ours) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(again, moments(3)) == pytest.approx(frechet_distance(ours, moments(3)), rel=1e-12)


def test_files_that_are_no_statistics_are_refused_by_name(tmp_path: Path) -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    cases = {
        "lacks sigma": dict(mu=mu),
        "expected mu and sigma": dict(a=mu),
        r"expected \(dim,\) and \(dim, dim\)": dict(mu=mu, sigma=np.eye(4)),
        "NaN or infinity": dict(mu=mu, sigma=sigma * np.nan),
        "not symmetric": dict(mu=mu, sigma=np.triu(np.ones((3, 3)))),
        "expected floats": dict(mu=mu, sigma=np.eye(3, dtype=int)),
        "cannot be read": dict(mu=np.array([None]), sigma=sigma),  # would be unpickled
    }
    for message, arrays in cases.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ConfigError, match=message):
            load_statistics(tmp_path / "bad.npz")
    np.savez(tmp_path / "fine.npz", mu=mu, sigma=sigma)
    with pytest.raises(ConfigError, match=r"3 features, the extractor has 64: .*--extractor"):
        load_statistics(tmp_path / "fine.npz", dim=64)
    whole = (tmp_path / "fine.npz").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_statistics(tmp_path / "cut.npz")
    for missing in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(ConfigError, match="no file of statistics"):
            load_statistics(missing)
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        save_statistics(tmp_path / "ours.npy", moments(0))


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fq_toolkit.fqgan.metrics.stored_statistics._LARGEST", 8)
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(100), sigma=np.zeros((100, 100)))
    with pytest.raises(ConfigError, match="unpacks to"):
        load_statistics(tmp_path / "bomb.npz")
