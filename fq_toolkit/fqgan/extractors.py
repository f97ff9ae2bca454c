"""Feature extractors for evaluation. Each has a name, and every figure carries it: ``fid[digits-cnn]``.

``digits-cnn`` is a small classifier that is trained on the real digits where it is first needed (seconds) and
kept in the user's cache with a checksum. Its training is seeded, so that two machines measure with nearly the
same ruler; its accuracy on digits that it did not see is reported beside the figures.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.cache import cache_folder
from fq_toolkit.fqgan.datasets import ImageDataset
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.seeding import isolated_rng

log = logging.getLogger("fq_toolkit")


class Extracted(NamedTuple):
    """What an extractor says about images: features (n, dim) and class logits (n, num_classes)."""

    features: Tensor
    logits: Tensor


class Extractor(Protocol):
    """A named ruler for images."""

    name: str
    dim: int
    holdout_accuracy: float

    def __call__(self, images: Tensor) -> Extracted:
        """Look at images (n, C, H, W) in [-1, 1]."""


class DigitsCNN(nn.Module):
    """conv 32 - conv 64 /2 - conv 64 /2 - linear 64 - linear 10, for 16x16 digits.

    The features are the last convolution's map, pooled to 2x2: unlike the classifier's own last layer, which
    keeps little but the class, they still see how a digit is written, and so whether the samples vary as the
    real ones do.
    """

    name = "digits-cnn"
    dim = 256

    def __init__(self) -> None:
        super().__init__()
        self.holdout_accuracy = 0.0
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, images: Tensor) -> Extracted:
        """Look at images (n, 1, 16, 16) in [-1, 1]."""
        maps = self.body(images)
        return Extracted(functional.avg_pool2d(maps, 2).flatten(1), self.head(maps))


EPOCHS, _BATCH, _SEED, _VERSION = 8, 64, 1234, 1


def _train(data: ImageDataset) -> DigitsCNN:
    """Train on four fifths of the images, shifted by up to a pixel; measure accuracy on the rest."""
    with isolated_rng(_SEED):
        order = torch.randperm(len(data.images))
        cut = len(order) * 4 // 5
        seen, held = order[:cut], order[cut:]
        model = DigitsCNN()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        batches = cut // _BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * batches)
        for _ in range(EPOCHS):
            for rows in seen[torch.randperm(cut)][: batches * _BATCH].split(_BATCH):
                shift = torch.randint(-1, 2, (2,)).tolist()
                images = torch.roll(data.images[rows], shift, dims=(2, 3))
                loss = functional.cross_entropy(model(images).logits, data.labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        model.eval().requires_grad_(False)
        guesses = model(data.images[held]).logits.argmax(1)
        model.holdout_accuracy = float((guesses == data.labels[held]).double().mean())
    return model


def digits_cnn(data: ImageDataset, *, cache: bool = True) -> DigitsCNN:
    """Return the classifier of the digits: from the cache if it is intact, else trained and cached.

    Args:
        data: the digits dataset.
        cache: False neither reads nor writes the cache.
    """
    from safetensors.torch import load, save

    fingerprint = hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()[
        :12
    ]
    path = cache_folder() / f"{DigitsCNN.name}-v{_VERSION}-{fingerprint}.safetensors"
    record_path = path.with_suffix(".json")
    if cache:
        try:
            record, payload = json.loads(record_path.read_text()), path.read_bytes()
            if hashlib.sha256(payload).hexdigest() == record["sha256"]:
                with isolated_rng(_SEED):  # building draws weights; a warm cache must not change a run
                    model = DigitsCNN()
                model.load_state_dict(load(payload))
                model.holdout_accuracy = float(record["holdout_accuracy"])
                return model.eval().requires_grad_(False)
            log.warning("the cached %s in %s is damaged; training it again", DigitsCNN.name, path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            log.warning(
                "the cached %s in %s cannot be used (%s); training it again", DigitsCNN.name, path, error
            )
    model = _train(data)
    if cache:
        payload = save(dict(model.state_dict()))
        record = {"sha256": hashlib.sha256(payload).hexdigest(), "holdout_accuracy": model.holdout_accuracy}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, payload)
            write_atomic(record_path, json.dumps(record).encode())
        except (OSError, RunError) as error:
            log.warning("%s is not cached: %s", DigitsCNN.name, error)
    return model


EXTRACTORS: dict[str, Callable[..., Extractor]] = {DigitsCNN.name: digits_cnn}


def load_extractor(name: str, data: ImageDataset) -> Extractor:
    """Return an extractor by name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"unknown feature extractor {name!r}; {nearest(name, list(EXTRACTORS))}")
    return EXTRACTORS[name](data)
