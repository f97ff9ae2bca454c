"""Folders and zip archives of pictures: a folder for each class, labels in a file, or no classes."""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.image_files import Source, read_images
from fq_toolkit.fqgan.data.image_trees import ImageTree, Parts, folder_tree, unwrapped, zip_tree
from fq_toolkit.fqgan.data.pixels import Fit, StoredImages
from fq_toolkit.fqgan.data.stylegan_labels import FILE_NAME, match_labels, read_labels
from fq_toolkit.training.errors import ConfigError

log = logging.getLogger("fq_toolkit")


class FolderImages(NamedTuple):
    """The pictures of a folder or an archive, with their classes.

    images: all of them.
    labels: int64 (N,): place of the class in the sorted names, or what the file with labels says; 0 without
        classes.
    num_classes: classes; 1 without any.
    class_names: names of the folders; empty without classes, or where they are numbers.
    kind: of folder, for people.
    """

    images: StoredImages
    labels: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    kind: str


def holds_images(folder: Path) -> bool:
    """Return whether there are pictures in a folder or in its folders, or a file that labels some."""
    return (folder / FILE_NAME).is_file() or bool(folder_tree(folder, depth=2).pictures)


def read_image_folder(
    folder: Path,
    *,
    size: int = 0,
    fit: "Fit | Literal['auto']" = "auto",
    skip_damaged: bool = False,
    nested: bool = False,
) -> FolderImages:
    """Read the pictures of a folder or a zip archive.

    A ``dataset.json`` at the top has the labels of all pictures below, as StyleGAN's dataset tool writes it.
    Otherwise ``folder/CLASS/*.png`` makes a class of each folder, sorted, and ``folder/*.png`` none. The log
    warns of files that are left out, a single class, a wrong level of the tree, and folders that look like
    shards rather than classes.

    Args:
        folder: the folder or the archive.
        size: scale and cut every picture to this; 0 demands that all have one size already.
        fit: see `read_images`.
        skip_damaged: the same.
        nested: take all pictures below, however deep, and no classes.

    Raises:
        ConfigError: when there are no pictures, some are broken, their sizes or labels do not fit; files are
            named.
    """
    packed = not folder.is_dir()
    kind = "zip archive" if packed else "image folder"
    has_file = not packed and (folder / FILE_NAME).is_file()
    # Classes are one folder deep; one level more tells whether the path is a level too high.
    tree = zip_tree(folder) if packed else folder_tree(folder, depth=0 if nested or has_file else 3)
    label_file = tree.others.pop((FILE_NAME,), None)  # not one of the files that are left out
    if nested or label_file is not None:
        if not tree.pictures:
            raise ConfigError(f"{folder} holds no images")
        tell_left_out(tree)
        sources = [source for _, source in tree.pictures]
        by_name = None if nested or label_file is None else read_labels(label_file)
        if label_file is None or by_name is None:
            labels, what = [0] * len(sources), "without classes"
        else:
            names = ["/".join(parts) for parts, _ in tree.pictures]
            labels, what = match_labels(label_file, by_name, names), f"with labels in {FILE_NAME}"
        names_of_classes: tuple[str, ...] = ()
    else:
        by_class = _by_class(tree)
        sources = [source for group in by_class.values() for source in group]
        labels = [i for i, group in enumerate(by_class.values()) for _ in group]
        names_of_classes = () if list(by_class) == [""] else tuple(by_class)
        what = "" if names_of_classes else "without classes"
    classes = len(names_of_classes) or max(labels) + 1
    # A single stray label would ask for a network with that many classes.
    if classes > max(100, len(labels)):
        raise ConfigError(
            f"{label_file} has the label {classes - 1} but {len(labels)} images; "
            "labels count the classes from 0 without gaps"
        )
    read = read_images(sources, size=size, fit=fit, skip_damaged=skip_damaged)
    skipped = f", {len(read.damaged)} damaged and skipped" if read.damaged else ""
    kept = torch.tensor(labels)[read.kept]  # labels of damaged pictures go with them
    there = len(kept.unique())
    if there < classes:
        log.warning(
            "%s: labels go from 0 to %d, but only %d of them have images; a conditional GAN learns nothing "
            "about the others",
            *(folder, classes - 1, there),
        )
    return FolderImages(read.images, kept, classes, names_of_classes, f"{kind} {what}".rstrip() + skipped)


def loose_pictures(source: Path, *, nested: bool) -> list[tuple[Parts, Source]]:
    """Return the pictures of a folder or a zip archive, by the parts of their names; no classes.

    Args:
        source: the folder or archive. Of an archive of one folder, that folder is looked at.
        nested: take all below, however deep; else only those directly in it, and the log names the folders.

    Raises:
        ConfigError: when it cannot be listed.
    """
    packed = not source.is_dir()
    tree = zip_tree(source) if packed else folder_tree(source, depth=0 if nested else 1)
    pictures = unwrapped(tree) if packed else tree.pictures
    tell_left_out(tree)
    if nested:
        return pictures
    folders = dict.fromkeys(parts[0] for parts, _ in pictures if len(parts) > 1) if packed else tree.folders
    if folders:
        log.warning(
            "%s: the folders in it are not looked into (%s); --nested takes the images in them",
            *(source, ", ".join(folders)),
        )
    return [(parts, picture) for parts, picture in pictures if len(parts) == 1]


def tell_left_out(tree: ImageTree, depth: int = 0) -> None:
    """Warn of files that are not read as images, see `ImageTree.left_out`."""
    left_out = tree.left_out(depth)
    if left_out:
        log.warning("%s: files that are not read as images: %s", tree.where, left_out)


def _by_class(tree: ImageTree) -> dict[str, list[Source]]:
    """Group pictures by their folder; without class folders, all are under an empty name."""
    where = tree.where
    loose = [source for parts, source in tree.pictures if len(parts) == 1]
    by_class: dict[str, list[Source]] = {}
    for parts, source in tree.pictures:
        if len(parts) == 2:
            by_class.setdefault(parts[0], []).append(source)
    deeper = list(dict.fromkeys(parts[0] for parts, _ in tree.pictures if len(parts) > 2))
    tell_left_out(tree, 2)
    if {"trainA", "trainB"} <= set(tree.folders):
        raise ConfigError(
            f"{where} holds two unpaired domains (trainA, trainB); "
            f"they are for: fq-toolkit train ugatit --data {where}"
        )
    if not by_class and not loose:
        hint = (
            f"; did you mean {where / deeper[0]}? --nested takes all of them, without classes"
            if deeper
            else ""
        )
        raise ConfigError(f"{where} holds no images, and no folders of images{hint}")
    if deeper:
        log.warning(
            "%s: the folders in %s are not looked into; if those are the classes, give a path one deeper, or "
            "--nested for all images without classes",
            *(where, ", ".join(deeper)),
        )
    else:
        empty = [name for name in tree.folders if name not in by_class]
        if empty:
            log.warning("%s: no images in %s, so there are no such classes", where, ", ".join(empty))
    if not by_class:
        return {"": loose}
    if loose:
        log.warning("%s: %d images beside the folders of the classes are not used", where, len(loose))
    if len(by_class) == 1:
        log.warning(
            "%s has a single class, %s; if that is not meant, the path is a level too high or too low",
            *(where, next(iter(by_class))),
        )
    step = _step(list(by_class))
    if step:
        log.warning(
            "%s: the folders %s, ... are numbers in steps of %d: they become classes. If they are parts of "
            "one large folder, as in FFHQ, give --nested; labels are read from a %s at the top",
            *(where, ", ".join(list(by_class)[:3]), step, FILE_NAME),
        )
    return by_class


def _step(names: list[str]) -> int:
    """Return 1 or 1000 if the names are numbers in steps of that, as shards have, else 0."""
    if len(names) < 2 or not all(name.isdecimal() and len(name) < 19 for name in names):
        return 0
    numbers = sorted(map(int, names))
    steps = {after - before for before, after in pairwise(numbers)}
    return steps.pop() if steps in ({1}, {1000}) else 0
