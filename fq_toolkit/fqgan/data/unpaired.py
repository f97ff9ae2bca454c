"""Two unpaired domains for image translation: trainA, trainB, testA, testB."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.data.datasets import load_digits
from fq_toolkit.fqgan.data.image_files import read_images
from fq_toolkit.fqgan.data.image_folders import images_in
from fq_toolkit.fqgan.data.pixels import Fit, Images, StoredImages
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError

PARTS = ("trainA", "trainB", "testA", "testB")


def loading_size(size: int) -> int:
    """Return the size at which training images are loaded: 286 for crops of 256, in proportion for others."""
    return round(size * 286 / 256)


class UnpairedDataset(NamedTuple):
    """Images of two domains that do not belong together one by one.

    train_a, train_b: (N, C, L, L) in [-1, 1] with L = ``loading_size(size)``, to be cropped at random.
    test_a, test_b: (N, C, size, size).
    found: what it is, for people.
    """

    name: str
    train_a: Images
    train_b: Images
    test_a: Images
    test_b: Images
    found: str

    @property
    def channels(self) -> int:
        """Channels of the images of both domains."""
        return int(self.train_a.shape[1])


def load_unpaired(
    source: str, *, size: int, fit: "Fit | Literal['auto']" = "auto", skip_damaged: bool = False
) -> UnpairedDataset:
    """Load ``digits`` (see :func:`digits_and_negatives`) or a folder with trainA, trainB, testA and testB.

    Without testA and testB the training images are tested on, and ``found`` says so.

    Args:
        source: ``digits`` or the folder.
        size: pixels of a side.
        fit: see :func:`fq_toolkit.fqgan.data.image_files.read_images`.
        skip_damaged: the same.

    Raises:
        ConfigError: when parts are missing or empty, files are broken, or only one domain is gray.
    """
    if source == "digits":
        return digits_and_negatives(size)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"unknown dataset {source!r}; {nearest(source, ['digits'])} Nor is it a folder")
    present = [part for part in PARTS if (folder / part).is_dir() and images_in(folder / part)]
    if not {"trainA", "trainB"} <= set(present):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ConfigError(
            f"{folder} has the folders {', '.join(names) or 'none'}; "
            "expected trainA and trainB with images in them, and testA and testB for images to test on"
        )
    larger = loading_size(size)

    def read(part: str, side: int) -> StoredImages:
        paths = images_in(folder / part)
        return read_images(paths, size=side, fit=fit, skip_damaged=skip_damaged).images

    train = [read(part, larger) for part in PARTS[:2]]
    test = [read(part if part in present else PARTS[i], size) for i, part in enumerate(PARTS[2:])]
    if len({images.shape[1] for images in (*train, *test)}) > 1:
        raise ConfigError(f"{folder}: some of {', '.join(present)} hold gray images only, others colour ones")
    missing = [part for part in PARTS if part not in present]
    note = f" (no {' and '.join(missing)}: tested on the training images)" if missing else ""
    counts = ", ".join(f"{part} {len(images)}" for part, images in zip(PARTS, (*train, *test), strict=True))
    found = f"unpaired folders: {counts}{note}"
    return UnpairedDataset(folder.name, train[0], train[1], test[0], test[1], found)


def digits_and_negatives(size: int) -> UnpairedDataset:
    """Return the built-in example: digits in white on black, and other digits in black on white.

    The digits of both domains are different ones; every fifth is for testing.
    """
    images = load_digits().images[:]
    halves = {"A": images[0::2], "B": -images[1::2]}
    held = {name: torch.arange(len(half)) % 5 == 4 for name, half in halves.items()}
    train = [_sized(half[~held[name]], loading_size(size)) for name, half in halves.items()]
    test = [_sized(half[held[name]], size) for name, half in halves.items()]
    found = "digits (A) and negatives of other digits (B)"
    return UnpairedDataset("digits", train[0], train[1], test[0], test[1], found)


def _sized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
