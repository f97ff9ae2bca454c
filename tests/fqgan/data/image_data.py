"""Small datasets in the published file formats, written by the tests."""

import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]


def shared(name: str) -> Path:
    """Return a file of the shared data, or skip the test."""
    folder = Path(os.environ.get("FQ_TOOLKIT_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "images" / name
    if not path.exists():
        pytest.skip(f"{path} is not there: see $FQ_TOOLKIT_DATA")
    return path


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar_python(folder: Path, *, classes: int = 10, batches: int = 5, count: int = 4) -> np.ndarray:
    """Write training batches as published and return their images (N, 3, 32, 32)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = pixels(0, batches, count, 3, 32, 32)
    names = [f"data_batch_{i + 1}" for i in range(batches)] if classes == 10 else ["train"]
    key = b"labels" if classes == 10 else b"fine_labels"
    for i, name in enumerate(names):
        batch = {
            b"data": images[i].reshape(count, -1),
            key: [(i * count + j) % classes for j in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({}, protocol=2))
    return images[: len(names)].reshape(-1, 3, 32, 32)


def write_idx(path: Path, array: np.ndarray) -> None:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """Write a picture of random pixels and return them as RGB (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = pixels(seed, size[1], size[0], 3)
    Image.fromarray(rgb).convert(mode).save(path)
    return rgb


def write_zip(folder: Path, path: Path, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    """Pack the content of a folder, below the folder ``inside`` of the archive, and return its path."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{inside}{file.relative_to(folder)}")
    return path


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture."""
    with Image.open(path) as picture:
        return picture.size
