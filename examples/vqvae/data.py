"""Data: what is trained on, what is measured on, and a digest by which a run knows them again."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.storage.measured_data import MeasuredSet


class Digits(NamedTuple):
    """Images in [0, 1].

    train: (N, 1, 8, 8).
    validation: (M, 1, 8, 8).
    """

    train: Tensor
    validation: Tensor

    def fingerprint(self) -> str:
        """Return a digest of the training images."""
        return hashlib.sha256(self.train.numpy().tobytes()).hexdigest()

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return what evaluations measure on."""
        digest = hashlib.sha256(self.validation.numpy().tobytes()).hexdigest()
        return {"validation": MeasuredSet("every fifth of digits", digest, len(self.validation))}


def load_digits(name: str) -> Digits:
    """Load the images; every fifth is kept for validation.

    Raises:
        ConfigError: for data that this example does not know.
    """
    if name != "digits":
        raise ConfigError(f"data is {name!r}; this example knows digits")
    datasets = require("sklearn.datasets", purpose="the digits")
    images = torch.from_numpy(datasets.load_digits().images).float().div(16).unsqueeze(1)
    held_out = torch.arange(len(images)) % 5 == 0
    return Digits(images[~held_out], images[held_out])
