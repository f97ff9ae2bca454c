"""Two unpaired domains for image translation: trainA, trainB, testA, testB."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.data.datasets import as_path, load_digits
from fq_toolkit.fqgan.data.image_files import ReadImages, Source, read_images
from fq_toolkit.fqgan.data.image_folders import tell_left_out
from fq_toolkit.fqgan.data.image_trees import ImageTree, folder_tree, unwrapped, zip_tree
from fq_toolkit.fqgan.data.pixels import Fit, Images, fingerprint
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.measured_data import MeasuredSet

log = logging.getLogger("fq_toolkit")

PARTS = ("trainA", "trainB", "testA", "testB")


def loading_size(size: int) -> int:
    """Return the size at which training images are loaded: 286 for crops of 256, in proportion for others."""
    return round(size * 286 / 256)


class UnpairedDataset(NamedTuple):
    """Images of two domains, without pairs.

    train_a, train_b: (N, C, L, L) in [-1, 1] with L = ``loading_size(size)``, to be cropped at random.
    test_a, test_b: (N, C, size, size).
    found: what the files are, for people.
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
    source: str,
    *,
    size: int,
    fit: "Fit | Literal['auto']" = "auto",
    skip_damaged: bool = False,
    nested: bool = False,
) -> UnpairedDataset:
    """Load ``digits`` (see `digits_and_negatives`), or trainA, trainB, testA and testB from files.

    Without testA and testB the training images are tested on, and ``found`` says so.

    Args:
        source: ``digits``, or a folder with these four in it as folders or as zip archives, or a zip archive
            of such a folder.
        size: pixels of a side.
        fit: see `read_images`.
        skip_damaged: the same.
        nested: take all pictures below each of the four, however deep.

    Raises:
        ConfigError: when parts are missing or empty, files are broken, or only one domain is gray.
    """
    if source == "digits":
        return digits_and_negatives(size)
    path = as_path(source)
    packed = not path.is_dir()
    if not path.exists():
        raise ConfigError(f"unknown dataset {source!r}; {nearest(source, ['digits'])} Nor is it a folder")
    if packed and path.suffix.lower() != ".zip":
        raise ConfigError(f"{path} is no folder or zip archive; expected one with trainA and trainB in it")
    pictures = _by_part(path, packed=packed, nested=nested)
    larger = loading_size(size)  # room for random crops, which only training takes

    def read(part: str, side: int) -> ReadImages:
        return read_images(pictures[part], size=side, fit=fit, skip_damaged=skip_damaged)

    missing = [part for part in PARTS if part not in pictures]
    sources = [*PARTS[:2], *(part if part in pictures else PARTS[i] for i, part in enumerate(PARTS[2:]))]
    read_parts = [read(part, side) for part, side in zip(sources, (larger, larger, size, size), strict=True)]
    train_a, train_b, test_a, test_b = (part.images for part in read_parts)
    if len({part.images.shape[1] for part in read_parts}) > 1:
        raise ConfigError(f"{path}: some of {', '.join(pictures)} hold gray images only, others colour ones")
    counts = ", ".join(
        f"{name} {len(part.images)}" + (f" ({len(part.damaged)} damaged and skipped)" if part.damaged else "")
        for name, part in zip(PARTS, read_parts, strict=True)
    )
    note = f" (no {' and '.join(missing)}: tested on the training images)" if missing else ""
    description = f"unpaired {'zip archive' if packed else 'folders'}: {counts}{note}"
    return UnpairedDataset(path.name, train_a, train_b, test_a, test_b, description)


def _by_part(path: Path, *, packed: bool, nested: bool) -> dict[str, list[Source]]:
    """Return part -> its pictures, sorted; parts without any are left out.

    Raises:
        ConfigError: when a domain has nothing to train on.
    """
    # One level deeper than needed, to notice that --nested would find more.
    tree = zip_tree(path) if packed else folder_tree(path, depth=0 if nested else 3)
    pictures: dict[str, list[Source]] = {}
    deeper: dict[str, None] = {}  # parts with pictures that are not used, in order
    for parts, source in _with_archives(tree):
        if parts[0] in PARTS and (len(parts) == 2 or (nested and len(parts) > 2)):
            pictures.setdefault(parts[0], []).append(source)
        elif parts[0] in PARTS:
            deeper[parts[0]] = None
    tell_left_out(tree)
    if not {"trainA", "trainB"} <= pictures.keys():
        hint = f"; images in folders of {', '.join(deeper)} are taken with --nested" if deeper else ""
        raise ConfigError(
            f"{path} has the folders {', '.join(tree.folders) or 'none'}; "
            f"expected trainA and trainB with images in them, and testA and testB for images to test on{hint}"
        )
    if deeper:
        log.warning("%s: images in folders of %s are not used; --nested takes them", path, ", ".join(deeper))
    return {part: pictures[part] for part in PARTS if part in pictures}


def _with_archives(tree: ImageTree) -> list[tuple[tuple[str, ...], Source]]:
    """Return the pictures of a folder, and those of an archive ``trainA.zip`` as if it were the folder."""
    pictures = list(tree.pictures)
    for part in PARTS:
        archive = tree.others.get((f"{part}.zip",))
        if isinstance(archive, Path) and part not in tree.folders:
            del tree.others[(f"{part}.zip",)]
            pictures += [((part, *parts), source) for parts, source in unwrapped(zip_tree(archive))]
    return pictures


def translated_images(source: str, data: UnpairedDataset) -> dict[str, MeasuredSet]:
    """Return what translators are measured on: the test images of both domains."""
    sets = {}
    for part, images in zip(PARTS[2:], (data.test_a, data.test_b), strict=True):
        folder = Path(source).expanduser() / part
        where = str(folder) if folder.is_dir() else source
        sets[part] = MeasuredSet(where, fingerprint([images]), len(images))
    return sets


def digits_and_negatives(size: int) -> UnpairedDataset:
    """Return the built-in example: digits in white on black, and other digits in black on white.

    No digit is in both domains; every fifth is for testing.
    """
    images = load_digits().images[:]
    halves = {"A": images[0::2], "B": -images[1::2]}  # in [-1, 1] the negative is the sign
    held = {name: torch.arange(len(half)) % 5 == 4 for name, half in halves.items()}
    train = [_sized(half[~held[name]], loading_size(size)) for name, half in halves.items()]
    test = [_sized(half[held[name]], size) for name, half in halves.items()]
    description = "digits (A) and negatives of other digits (B)"
    return UnpairedDataset("digits", train[0], train[1], test[0], test[1], description)


def _sized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
