"""Image datasets in memory. The default, scikit-learn's digits, needs no download."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.extras import require


class ImageDataset(NamedTuple):
    """Labelled images.

    images: float32 (N, C, H, W) in [-1, 1].
    labels: int64 (N,) in [0, num_classes).
    extractor: name of the feature extractor that evaluation uses for this dataset.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    extractor: str


def load_digits() -> ImageDataset:
    """Load the 1,797 handwritten digits of scikit-learn, enlarged from 8x8 to 16x16.

    Source: UCI "Optical Recognition of Handwritten Digits" test set.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    raw = require("sklearn.datasets", purpose="the digits dataset").load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16  # 0..16 -> 0..1
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    return ImageDataset("digits", images * 2 - 1, labels, 10, "digits-cnn")


DATASETS: dict[str, Callable[[], ImageDataset]] = {"digits": load_digits}


def load_dataset(name: str) -> ImageDataset:
    """Load a dataset by name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown dataset {name!r}; {nearest(name, list(DATASETS))}")
    return DATASETS[name]()
