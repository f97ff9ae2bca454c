"""Feature extractors for evaluation. Each has a name, and every figure carries it: ``fid[digits-cnn]``.

Classifiers are trained on the real images where they are first needed (seconds to minutes) and kept in the
user's cache with a checksum. Their training is seeded, so that two machines measure with nearly the same
features; their accuracy on held-out images is reported beside the figures.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.cache import cache_folder
from fq_toolkit.fqgan.data.augmentation import random_flip
from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.metrics.classifiers import DigitsCNN, Extracted, ImageCNN, random_cnn
from fq_toolkit.fqgan.metrics.torchscript_extractor import TorchScriptExtractor
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.seeding import isolated_rng

log = logging.getLogger("fq_toolkit")


class Extractor(Protocol):
    """A named feature extractor; ``holdout_accuracy`` is None where it does not know the data's classes."""

    @property
    def name(self) -> str:
        """Name that figures carry."""

    @property
    def dim(self) -> int:
        """Features per image."""

    @property
    def holdout_accuracy(self) -> float | None:
        """Accuracy on real images that it did not see, or None."""

    def __call__(self, images: Tensor) -> Extracted:
        """Look at images (n, C, H, W) in [-1, 1]."""


# At most MAX_STEPS batches: a part of an epoch of a large dataset is enough. _VERSION is part of the name of
# the cached file: raise it when anything about the training changes.
EPOCHS, MAX_STEPS, _BATCH, _SEED, _VERSION = 8, 2000, 64, 1234, 1


def known_labels(data: ImageDataset) -> Tensor:
    """Return the labels that the files have, whether training uses them or not."""
    return data.labels if data.annotations is None else data.annotations


def _train(data: ImageDataset, make: Callable[[], nn.Module]) -> nn.Module:
    """Return a classifier trained on four fifths of the images, with its accuracy on the rest.

    Images are shifted by up to a pixel, and colour ones mirrored.
    """
    labels = known_labels(data)
    with isolated_rng(_SEED):
        order = torch.randperm(len(data.images))
        cut = len(order) * 4 // 5
        seen, held = order[:cut], order[cut:]
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        size = min(_BATCH, cut)
        batches = min(cut // size, MAX_STEPS)
        epochs = min(EPOCHS, MAX_STEPS // batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in seen[torch.randperm(cut)][: batches * size].split(size):
                shift = torch.randint(-1, 2, (2,)).tolist()
                images = torch.roll(data.images[rows], shift, dims=(2, 3))
                if images.shape[1] == 3:
                    images = random_flip(images)
                loss = functional.cross_entropy(model(images).logits, labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        model.eval().requires_grad_(False)
        guesses = torch.cat([model(data.images[rows]).logits.argmax(1) for rows in held.split(1000)])
        model.holdout_accuracy = float((guesses == labels[held]).double().mean())  # type: ignore[assignment]
    return model


def _fingerprint(data: ImageDataset) -> str:
    digest = hashlib.sha256()
    for part in data.images.split(1024):
        digest.update(part.numpy().tobytes())
    digest.update(known_labels(data).numpy().tobytes())
    return digest.hexdigest()[:12]


def trained_in_place(
    name: str, data: ImageDataset, make: Callable[[], nn.Module], *, cache: bool
) -> nn.Module:
    """Return a classifier of a dataset: from the cache if it is intact, else trained and cached.

    Args:
        name: of the extractor; part of the name of the file.
        data: the dataset.
        make: builds the network.
        cache: False neither reads nor writes the cache.
    """
    from safetensors.torch import load, save

    path = cache_folder() / f"{name}-v{_VERSION}-{_fingerprint(data)}.safetensors"
    record_path = path.with_suffix(".json")
    if cache:
        try:
            record, payload = json.loads(record_path.read_text()), path.read_bytes()
            if hashlib.sha256(payload).hexdigest() == record["sha256"]:
                with isolated_rng(_SEED):  # building draws weights; a warm cache must not change a run
                    model = make()
                model.load_state_dict(load(payload))
                model.holdout_accuracy = float(record["holdout_accuracy"])  # type: ignore[assignment]
                return model.eval().requires_grad_(False)
            log.warning("the cached %s in %s is damaged; training it again", name, path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            log.warning("the cached %s in %s cannot be used (%s); training it again", name, path, error)
    model = _train(data, make)
    if cache:
        payload = save(dict(model.state_dict()))
        record = {"sha256": hashlib.sha256(payload).hexdigest(), "holdout_accuracy": model.holdout_accuracy}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, payload)
            write_atomic(record_path, json.dumps(record).encode())
        except (OSError, RunError) as error:
            log.warning("%s is not cached: %s", name, error)
    return model


def digits_cnn(data: ImageDataset, *, cache: bool = True) -> Extractor:
    """Return the classifier of the digits.

    Args:
        data: the digits dataset.
        cache: False neither reads nor writes the cache.

    Raises:
        ConfigError: for images of another size.
    """
    _demand(data, DigitsCNN.name, (1, 16, 16))
    return trained_in_place(DigitsCNN.name, data, DigitsCNN, cache=cache)  # type: ignore[return-value]


def cifar_cnn(data: ImageDataset, *, cache: bool = True) -> Extractor:
    """Return a classifier of CIFAR-10, CIFAR-100 or a part of them, trained on the data itself.

    Args:
        data: the dataset.
        cache: False neither reads nor writes the cache.

    Raises:
        ConfigError: for images of another size, or without classes.
    """
    _demand(data, "cifar-cnn", (3, 32, 32))
    return _image_cnn("cifar-cnn", data, cache)


def data_cnn(data: ImageDataset, *, cache: bool = True) -> Extractor:
    """Return a classifier of any labelled dataset, trained on the data itself.

    Args:
        data: the dataset, with square images of 8 pixels or more.
        cache: False neither reads nor writes the cache.

    Raises:
        ConfigError: without classes.
    """
    return _image_cnn("data-cnn", data, cache)


def _image_cnn(name: str, data: ImageDataset, cache: bool) -> Extractor:
    classes = int(known_labels(data).max()) + 1
    if classes < 2:
        raise ConfigError(f"{name} learns the classes of its dataset; {data.name} has one: use random-cnn")
    channels, size = data.images.shape[1:3]
    return trained_in_place(  # type: ignore[return-value]
        name, data, lambda: ImageCNN(name, channels=channels, size=size, num_classes=classes), cache=cache
    )


def fixed_random_cnn(data: ImageDataset) -> Extractor:
    """Return the network with random weights for images of this size; it knows no classes."""
    with isolated_rng(_SEED):
        model = random_cnn(channels=data.images.shape[1], size=data.images.shape[2])
    model.holdout_accuracy = None
    return model


def _demand(data: ImageDataset, name: str, shape: tuple[int, int, int]) -> None:
    if tuple(data.images.shape[1:]) != shape:
        given, expected = ("x".join(map(str, size)) for size in (data.images.shape[1:], shape))
        raise ConfigError(
            f"{name} looks at images of {expected}; those of {data.name} are {given}: use data-cnn"
        )


EXTRACTORS: dict[str, Callable[[ImageDataset], Extractor]] = {
    DigitsCNN.name: digits_cnn,
    "cifar-cnn": cifar_cnn,
    "data-cnn": data_cnn,
    "random-cnn": fixed_random_cnn,
}


def extractor_name(choice: str, data: ImageDataset) -> str:
    """Return the name that figures carry for a choice: ``auto``, a name, or ``NAME:FILE``."""
    return data.extractor if choice == "auto" else choice.partition(":")[0]


def load_extractor(choice: str, data: ImageDataset) -> Extractor:
    """Return an extractor.

    Args:
        choice: ``auto`` for the dataset's own, a name, or ``NAME:FILE`` with a TorchScript file, for example
            ``inception:inception.pt`` (see `TorchScriptExtractor`).
        data: what it is to look at.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), or when it does not fit the data.
    """
    name, colon, file = choice.partition(":")
    if colon:
        if name in ("auto", *EXTRACTORS):
            raise ConfigError(f"{name} is a built-in extractor; give {choice} another name before the colon")
        return TorchScriptExtractor(name, Path(file).expanduser())
    name = extractor_name(choice, data)
    if name == "inception":
        raise ConfigError(
            "inception needs its weights, which are not part of this package: give inception:FILE, the path "
            "of a TorchScript file"
        )
    if name not in EXTRACTORS:
        raise ConfigError(f"unknown feature extractor {name!r}; {nearest(name, list(EXTRACTORS))}")
    return EXTRACTORS[name](data)
