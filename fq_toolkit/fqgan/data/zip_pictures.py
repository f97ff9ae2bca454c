"""Files inside a zip archive, read into memory one at a time; nothing is ever written to a disk."""

import io
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from fq_toolkit.fqgan.data.file_bounds import regular_size
from fq_toolkit.training.errors import ConfigError

_LONGEST_NAME = 1024


class ZipEntry:
    """A file of an archive, with the parts of `Path` that reading a picture needs.

    Args:
        archive: the open archive; reading from several threads is safe.
        info: which entry.
    """

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._archive, self._info = archive, info
        self.name = info.filename.rpartition("/")[2]
        dot = self.name.rfind(".")
        self.suffix = self.name[dot:] if dot > 0 else ""
        self.size = info.file_size

    def __str__(self) -> str:
        return f"{self._archive.filename}/{self._info.filename}"

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the content, in memory.

        Raises:
            OSError: when it is damaged.
        """
        try:
            return io.BytesIO(self._archive.read(self._info))
        except Exception as error:  # whatever a damaged stream provokes
            raise OSError(f"damaged in the archive: {error or type(error).__name__}") from error


def open_zip(path: Path) -> list[tuple[tuple[str, ...], ZipEntry]]:
    """Open an archive -> the parts of each file's name, and the file; hidden files are left out.

    Raises:
        ConfigError: when it is no archive, or has names that lead outside, links, passwords or a name twice.
    """
    regular_size(path)
    try:
        archive = zipfile.ZipFile(path)  # stays open as long as a picture may be read from it
    except Exception as error:  # a damaged directory may raise anything
        raise ConfigError(f"cannot read {path}: {str(error) or type(error).__name__}") from error
    files: dict[tuple[str, ...], ZipEntry] = {}
    for info in archive.infolist():
        name = info.filename
        parts = tuple(part for part in name.split("/") if part != ".")
        is_folder = name.endswith("/")  # `info.is_dir()` fails on an empty name before Python 3.12
        inner = parts[:-1] if is_folder else parts
        if "\\" in name or ".." in parts or "" in inner or ":" in name[:2] or len(name) > _LONGEST_NAME:
            raise ConfigError(f"{path} has an entry {name[:80]!r}, whose name leads outside or nowhere")
        if is_folder or any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ConfigError(f"{path} has a link, {name!r}; expected files only")
        if info.flag_bits & 1:
            raise ConfigError(f"{path}: {name!r} needs a password; give an archive without one")
        if parts in files:
            raise ConfigError(f"{path} has two files called {name!r}")
        files[parts] = ZipEntry(archive, info)
    return list(files.items())
