"""``dataset.json``, which StyleGAN's dataset tool writes beside folders of pictures, with their classes."""

import json
from pathlib import Path
from typing import Any

from fq_toolkit.fqgan.data.file_bounds import regular_size
from fq_toolkit.fqgan.data.zip_pictures import ZipEntry
from fq_toolkit.training.errors import ConfigError

FILE_NAME = "dataset.json"
_LARGEST = 2**28
_FORM = 'expected {"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}'


def read_labels(source: "Path | ZipEntry") -> "dict[str, Any] | None":
    """Read picture name -> label; None where the file says that there are no labels.

    Args:
        source: the file, on disk or in an archive.

    Raises:
        ConfigError: when it cannot be read, or is of another form.
    """
    size = regular_size(source) if isinstance(source, Path) else source.size
    if size > _LARGEST:
        raise ConfigError(f"{source} has {size:,} bytes; expected at most {_LARGEST:,}")
    try:
        with source.open("rb") as file:
            content = json.loads(file.read())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"cannot read {source}: {str(error) or type(error).__name__}; {_FORM}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise ConfigError(f"{source} has no labels; {_FORM}. Rename it, or give --nested to ignore it")
    labels = content["labels"]
    if labels is None:
        return None
    if not isinstance(labels, list):
        raise ConfigError(f"{source}: labels are {type(labels).__name__}; {_FORM}")
    by_name: dict[str, Any] = {}
    for record in labels:
        if not isinstance(record, list) or len(record) != 2 or not isinstance(record[0], str):
            raise ConfigError(f"{source} has the record {str(record)[:80]}; {_FORM}")
        name = record[0].replace("\\", "/")  # as written on Windows
        if name in by_name:
            raise ConfigError(f"{source} has two labels for {name[:80]!r}")
        by_name[name] = record[1]
    return by_name


def match_labels(source: "Path | ZipEntry", labels: dict[str, Any], names: list[str]) -> list[int]:
    """Return the class of every picture, in the order of ``names``.

    Args:
        source: where the labels come from, for messages.
        labels: of `read_labels`.
        names: of the pictures, relative to the file, with ``/``.

    Raises:
        ConfigError: when pictures have no label, labels no picture, or one is not the number of a class.
    """
    # Both ways: labels without a picture tell that a part of the dataset is missing.
    there = set(names)
    missing = [name for name in names if name not in labels]
    if missing:
        raise ConfigError(
            f"{source} has no label for {len(missing)} of {len(names)} images, such as {missing[0][:80]!r}; "
            "remove them, or give --nested to use none of its labels"
        )
    lost = [name for name in labels if name not in there]
    if lost:
        raise ConfigError(
            f"{source} has labels for {len(lost)} image(s) that are not there, such as {lost[0][:80]!r}; "
            "bring them back, or give --nested to use none of its labels"
        )
    for name in names:
        # By type: JSON's true is no class 1.
        if type(labels[name]) is not int or not 0 <= labels[name] < 2**31:
            raise ConfigError(
                f"{source}: the label of {name[:80]!r} is {str(labels[name])[:60]}; expected a number, "
                "from 0, of a class. Give --nested to use none of its labels"
            )
    return [labels[name] for name in names]
