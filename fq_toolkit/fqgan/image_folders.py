"""Folders of pictures: one folder a class, or pictures alone."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.image_files import is_image, read_images
from fq_toolkit.fqgan.pixels import StoredImages
from fq_toolkit.training.errors import ConfigError

log = logging.getLogger("fq_toolkit")


class FolderImages(NamedTuple):
    """What a folder holds.

    images: all of them.
    labels: int64 (N,): place of the class in the sorted names; 0 without classes.
    class_names: names of the folders; empty without classes.
    found: what it is, for people.
    """

    images: StoredImages
    labels: Tensor
    class_names: tuple[str, ...]
    found: str


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts by text, and numbers in it by value: ``class2`` before ``class10``.

    Example:
        >>> sorted(["class10", "class2", "b"], key=natural)
        ['b', 'class2', 'class10']
    """
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def images_in(folder: Path) -> list[Path]:
    """Return the pictures directly in a folder, sorted."""
    return sorted((p for p in folder.iterdir() if is_image(p)), key=lambda path: natural(path.name))


def _folders_in(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=lambda path: natural(path.name))


def holds_images(folder: Path) -> bool:
    """Return whether there are pictures in a folder or in its folders."""
    return any(map(is_image, folder.iterdir())) or any(
        is_image(path) for below in _folders_in(folder) for path in below.iterdir()
    )


def deeper_images(folder: Path) -> list[str]:
    """Return the names of folders whose own folders hold pictures: the user may have meant one of them."""
    return [
        below.name
        for below in _folders_in(folder)
        if any(is_image(path) for lowest in _folders_in(below) for path in lowest.iterdir())
    ]


def read_image_folder(folder: Path, *, size: int = 0) -> FolderImages:
    """Read ``folder/CLASS/*.png`` (sorted classes), or ``folder/*.png`` without classes.

    A single class and a wrong level of the tree are warned about in the log.

    Args:
        folder: the folder.
        size: scale and cut every picture to this; 0 demands that all have one size already.

    Raises:
        ConfigError: when there are no pictures, some are broken or their sizes differ; files are named.
    """
    loose = images_in(folder)
    by_class = {below.name: images_in(below) for below in _folders_in(folder)}
    empty = [name for name, paths in by_class.items() if not paths]
    by_class = {name: paths for name, paths in by_class.items() if paths}
    deeper = deeper_images(folder)
    if not loose and not by_class:
        hint = f"; did you mean {folder / deeper[0]}?" if deeper else ""
        raise ConfigError(f"{folder} holds no images, and no folders of images{hint}")
    if deeper:
        log.warning(
            "%s: the folders in %s are not looked into; if those are the classes, give a path one deeper",
            *(folder, ", ".join(deeper)),
        )
    elif empty:
        log.warning("%s: no images in %s, so there are no such classes", folder, ", ".join(empty))
    if not by_class:
        images = read_images(loose, size=size)
        return FolderImages(images, torch.zeros(len(loose)).long(), (), "image folder without classes")
    if loose:
        log.warning("%s: %d images beside the folders of the classes are not used", folder, len(loose))
    if len(by_class) == 1:
        log.warning(
            "%s has a single class, %s; if that is not meant, the path is a level too high or too low",
            *(folder, next(iter(by_class))),
        )
    paths = [path for group in by_class.values() for path in group]
    counts = torch.tensor([len(group) for group in by_class.values()])
    labels = torch.repeat_interleave(torch.arange(len(by_class)), counts)
    return FolderImages(read_images(paths, size=size), labels, tuple(by_class), "image folder")
