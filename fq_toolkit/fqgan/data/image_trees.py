"""The pictures below a folder or in a zip archive, by the parts of their names; none is opened."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fq_toolkit.fqgan.data.image_files import Source, is_image
from fq_toolkit.fqgan.data.zip_pictures import ZipEntry, open_zip
from fq_toolkit.training.errors import ConfigError

Parts = tuple[str, ...]


class ImageTree(NamedTuple):
    """Names below a folder or in an archive.

    where: the folder or archive.
    pictures: parts of the relative names, and the files; sorted, numbers in names by value.
    folders: folders directly in it, sorted; hidden ones are left out.
    others: files that are no pictures, by the parts of their names.
    labels: the file with labels at the top, or None.
    """

    where: Path
    pictures: list[tuple[Parts, Source]]
    folders: list[str]
    others: dict[Parts, Source]

    def left_out(self, depth: int = 0) -> str:
        """Return the number of files that are not read, by their endings: ``.heic 2, .txt 1``.

        Args:
            depth: largest number of parts in the names of files that count; 0 counts all.
        """
        counts = Counter(
            source.suffix.lower() or "without ending"
            for parts, source in self.others.items()
            if not depth or len(parts) <= depth
        )
        return ", ".join(f"{ending} {count}" for ending, count in sorted(counts.items()))


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts by text, and numbers in it by value: ``class2`` before ``class10``.

    Example:
        >>> sorted(["class10", "class2", "b"], key=natural)
        ['b', 'class2', 'class10']
    """
    # The flag keeps numbers and text apart, which do not compare; the text itself orders 01 and 1.
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _key(parts: Parts) -> list[list[tuple[bool, int, str]]]:
    return [natural(part) for part in parts]


def folder_tree(folder: Path, *, depth: int = 0) -> ImageTree:
    """List a folder and those in it, without hidden ones; links to folders are followed, each folder once.

    Args:
        folder: the folder.
        depth: largest number of parts in a name; 0 goes all the way down.

    Raises:
        ConfigError: when a folder cannot be listed.
    """
    pictures: list[tuple[Parts, Source]] = []
    others: dict[Parts, Source] = {}
    top: list[str] = []
    waiting: list[Parts] = [()]
    seen: set[tuple[int, int]] = set()
    while waiting:
        parts = waiting.pop()
        here = folder.joinpath(*parts)
        try:
            about = here.stat()
            if (about.st_dev, about.st_ino) in seen:  # a link to a folder above it would never end
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(here) as entries:
                listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise ConfigError(f"cannot list the folder {here}: {error.strerror}") from error
        for name, is_folder in listed:
            if not is_folder:
                path = here / name
                if is_image(path):
                    pictures.append(((*parts, name), path))
                else:
                    others[(*parts, name)] = path
            elif not depth or len(parts) + 1 < depth:
                waiting.append((*parts, name))
            if is_folder and not parts:
                top.append(name)
    pictures.sort(key=lambda item: _key(item[0]))
    return ImageTree(folder, pictures, sorted(top, key=natural), others)


def zip_tree(path: Path) -> ImageTree:
    """List an archive; folders that hold everything else are stripped from the names.

    Raises:
        ConfigError: when it is damaged or leads outside, see `zip_pictures.open_zip`.
    """
    files: list[tuple[Parts, ZipEntry]] = open_zip(path)
    while files and len({parts[0] for parts, _ in files}) == 1 and all(len(parts) > 1 for parts, _ in files):
        deeper = any(len(parts) > 2 for parts, _ in files)
        if not deeper:  # one folder of files: the name of a class, or of nothing
            break
        files = [(parts[1:], file) for parts, file in files]
    pictures: list[tuple[Parts, Source]] = [(parts, file) for parts, file in files if is_image(file)]
    pictures.sort(key=lambda item: _key(item[0]))
    others: dict[Parts, Source] = {parts: file for parts, file in files if not is_image(file)}
    folders = sorted({parts[0] for parts, _ in files if len(parts) > 1}, key=natural)
    return ImageTree(path, pictures, folders, others)


def unwrapped(archive: ImageTree) -> list[tuple[Parts, Source]]:
    """Return the pictures of an archive without the name of the one folder that holds all of them.

    That name says nothing where there are no classes: a folder may be packed with or without its own name.
    """
    wrapped = len(archive.folders) == 1 and all(len(parts) > 1 for parts, _ in archive.pictures)
    return [(parts[1:] if wrapped else parts, picture) for parts, picture in archive.pictures]
