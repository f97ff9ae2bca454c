"""Reading pictures with pillow: any mode, any size, turned as the camera was held.

Pillow opens whatever it recognizes, whatever the name says, and some formats start other programs. Here the
ending of the name decides which one format is tried, and bytes and pixels are counted before decoding.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.fqgan.data.file_bounds import machine_memory, regular_size
from fq_toolkit.fqgan.data.pixels import Fit, StoredImages
from fq_toolkit.fqgan.data.zip_pictures import ZipEntry
from fq_toolkit.training.errors import ConfigError, RunError, require

log = logging.getLogger("fq_toolkit")

# Ending -> the format of pillow that it stands for, the only one that is tried.
FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".bmp": "BMP"},
    **{".webp": "WEBP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".tga": "TGA", ".avif": "AVIF"},
    **{".jp2": "JPEG2000", ".j2k": "JPEG2000", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM"},
}
# These need a part of pillow that not every build has; without it such files are left out and counted.
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# How the content begins of formats that often come with the ending of another.
_BEGINNINGS = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"%!PS": "PostScript",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WEBP", b"%PDF": "PDF", b"\xc5\xd0\xd3\xc6": "PostScript",
}  # fmt: skip
# Larger datasets stay on disk, and pictures are decoded whenever they are looked at.
MEMORY_LIMIT = 4 * 2**30
# The largest picture, 8192x8192, and the largest file; all threads together hold no more at a time.
MAX_PIXELS = 2**26
MAX_BYTES = 2**29
# Pictures that are scaled to more pixels than this are cropped first.
_WHOLE = 2**23
_THREADS, _NAMED = 8, 5
# Formats whose EXIF orientation is honoured; reading that of others would decode the whole picture.
_TURNED_BY_CAMERAS = ("JPEG", "MPO", "TIFF", "WEBP")
_GRAY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")

Source = Path | ZipEntry


class _Budget:
    """A bound on what all threads together hold at a time: those that would exceed it wait."""

    def __init__(self, total: int) -> None:
        self._left, self._total, self._changed = total, total, threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until there is room for ``amount``; more than the total waits until nobody holds anything."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_PIXELS, _BYTES = _Budget(MAX_PIXELS), _Budget(MAX_BYTES)


def is_image(path: Source) -> bool:
    """Return whether a file has the name of a picture that can be read. Hidden files have not."""
    name = FORMATS.get(path.suffix.lower())
    if name is None or path.name.startswith("."):
        return False
    return name not in _OPTIONAL or bool(
        require("PIL.features", purpose="reading images").check(_OPTIONAL[name])
    )


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    """Open a picture in the format of its ending, check its size in pixels, and decode nothing yet.

    Raises:
        ValueError: when it is too large, or something else.
        OSError: when it cannot be read.
        ConfigError: when it is no regular file.
    """
    pictures = require("PIL.Image", purpose="reading images")
    name = FORMATS.get(source.suffix.lower(), "PNG")
    size = regular_size(source) if isinstance(source, Path) else source.size
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes; of pictures at most {MAX_BYTES:,} are read")
    # Pillow reads whole chunks, and of some formats whole files; an entry of an archive is in memory anyway.
    with _BYTES.hold(size), source.open("rb") as file:
        try:
            picture = pictures.open(file, formats=(name,))
        except pictures.UnidentifiedImageError:
            file.seek(0)
            start = file.read(12)
            kind = next(
                (kind for begin, kind in _BEGINNINGS.items() if start.startswith(begin)), "something else"
            )
            raise ValueError(
                f"UnidentifiedImageError: its ending says {name}, its content is "
                + ("damaged" if kind == name else f"{kind}; rename or convert it" if start else "empty")
            ) from None
        with picture:
            wide, high = picture.size
            if wide * high > MAX_PIXELS:
                raise ValueError(
                    f"{wide}x{high} pixels; of pictures at most {MAX_PIXELS:,} are read: scale it"
                )
            yield picture


def read_image(path: Source, *, channels: int, size: int = 0, fit: Fit = "crop") -> Tensor:
    """Read one picture -> uint8 (channels, H, W).

    Transparent parts become white, 16-bit grays lose their lower byte, animations give their first frame, and
    EXIF rotation is applied. 32-bit numbers are refused, as nothing says which of them is white.

    Args:
        path: the file.
        channels: 1 for gray, 3 for colour.
        size: pixels of a side of the result; 0 leaves the size as it is.
        fit: ``"crop"`` scales the shorter side to ``size`` and cuts out the middle; ``"resize"`` scales both
            sides to it, which squeezes what is not square.

    Raises:
        ValueError: when the file is broken, too large, not what its name says, or holds numbers instead of
            brightness.
        OSError: when it cannot be read.
    """
    with _open(path) as picture, _PIXELS.hold(picture.size[0] * picture.size[1]):
        pixels = _decode(picture, channels, size, fit)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)


def _decode(picture: Any, channels: int, size: int, fit: Fit) -> np.ndarray:
    pictures = require("PIL.Image", purpose="reading images")
    _demand_brightness(picture)
    clear = picture.info.get("transparency") if picture.mode.startswith("I") else None
    if picture.format in _TURNED_BY_CAMERAS:
        picture = require("PIL.ImageOps", purpose="reading images").exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or (clear is None and "transparency" in picture.info):
        picture = picture.convert("RGBA")
        picture = pictures.alpha_composite(pictures.new("RGBA", picture.size, "white"), picture)
    elif picture.mode.startswith("I"):  # 16 bits, in pillow's 32-bit mode after it was turned
        deep = np.asarray(picture, dtype=np.int32)
        gray = (deep >> 8).clip(0, 255).astype(np.uint8)
        if clear is not None:
            gray[deep == clear] = 255
        picture = pictures.fromarray(gray)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if size:
        width, height = picture.size
        scale = size / min(width, height)
        wide, high = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (wide - size) // 2, (high - size) // 2
        filtering = pictures.Resampling.BILINEAR
        if fit == "resize":
            picture = picture.resize((size, size), filtering)
        elif wide * high <= _WHOLE:
            picture = picture.resize((wide, high), filtering).crop((left, top, left + size, top + size))
        else:  # only the middle, whose pixels may differ by a rounding: the rest is never computed
            x, y = width / wide, height / high
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            picture = picture.resize((size, size), filtering, box=box)
    return np.array(picture, dtype=np.uint8)


def _demand_brightness(picture: Any) -> None:
    """Refuse floats, and 32-bit integers of a format that also has 16 bits (pillow opens both as mode I)."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise ValueError(f"32-bit numbers (mode {picture.mode}), of which 8 bits cannot be made; convert it")


def _look(path: Source) -> "tuple[tuple[int, int], str] | str":
    """Return size and mode of a picture from its header, or what is wrong with it."""
    try:
        with _open(path) as picture:
            _demand_brightness(picture)
            size, mode = picture.size, picture.mode
            turned = picture.format in _TURNED_BY_CAMERAS and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (size[::-1] if turned else size), mode
    except Exception as error:  # pillow raises whatever a broken file provokes
        return _explain(error)


def _explain(error: Exception) -> str:
    text = str(error)
    return text if text.startswith("UnidentifiedImageError") else f"{type(error).__name__}: {text}"


def _named(lines: list[str], most: int = _NAMED) -> str:
    more = f"\n  and {len(lines) - most} more" if len(lines) > most else ""
    return "".join(f"\n  {line}" for line in lines[:most]) + more


class ReadImages(NamedTuple):
    """Pictures that were read.

    images: those that are intact.
    kept: their places among the files that were asked for.
    damaged: a line for each of the others.
    """

    images: StoredImages
    kept: list[int]
    damaged: list[str]


def read_images(
    paths: Sequence[Source],
    *,
    size: int = 0,
    channels: int = 0,
    fit: "Fit | Literal['auto']" = "crop",
    skip_damaged: bool = False,
) -> ReadImages:
    """Read pictures into memory, or prepare to read them from disk when they do not fit.

    Args:
        paths: the files.
        size: see `read_image`; 0 demands that all have one size already.
        channels: 1 for gray, 3 for colour; 0 for gray if all files are gray, else colour.
        fit: see `read_image`; ``"auto"`` crops and warns of pictures of which something is cut off.
        skip_damaged: leave out files that cannot be read, and warn of them by name, instead of refusing all.
            Pictures that stay on disk are then decoded once in advance.

    Raises:
        ConfigError: naming the files that are broken, or two of different size.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(_look, paths))
    faults = {i: f"{paths[i]}: {look}" for i, look in enumerate(looks) if isinstance(look, str)}
    if faults and not skip_damaged:
        raise _broken(list(faults.values()))
    heads = {i: look for i, look in enumerate(looks) if not isinstance(look, str)}
    if not heads:
        raise _broken(list(faults.values()))
    channels = channels or (1 if all(mode in _GRAY for _, mode in heads.values()) else 3)
    width, height = (size, size) if size else next(iter(heads.values()))[0]
    if not size:
        _demand_one_size(paths, {i: shape for i, (shape, _) in heads.items()})
    elif fit == "auto":
        warn_of_cuts(sum(wide != high for (wide, high), _ in heads.values()), len(heads))
    how: Fit = "resize" if fit == "resize" else "crop"
    kept = list(heads)
    on_disk = len(kept) * channels * height * width > min(MEMORY_LIMIT, machine_memory() // 2)
    pixels = torch.empty((0 if on_disk else len(kept), channels, height, width), dtype=torch.uint8)

    def load(row: int) -> "str | None":
        try:
            picture = read_image(paths[kept[row]], channels=channels, size=size, fit=how)
            if not on_disk:
                pixels[row] = picture
        except Exception as error:
            return f"{paths[kept[row]]}: {_explain(error)}"
        return None

    if not on_disk or skip_damaged:
        with ThreadPoolExecutor(_THREADS) as pool:
            late = {row: fault for row, fault in enumerate(pool.map(load, range(len(kept)))) if fault}
        faults |= {kept[row]: fault for row, fault in late.items()}
        if late and (not skip_damaged or len(late) == len(kept)):
            raise _broken(list(faults.values()))
        if late:
            whole = [row for row in range(len(kept)) if row not in late]
            pixels = pixels if on_disk else pixels[whole]
            kept = [kept[row] for row in whole]
    damaged = [faults[i] for i in sorted(faults)]
    if damaged:
        log.warning(
            "%d of %d images cannot be read and are skipped:%s",
            *(len(damaged), len(paths), _named(damaged, 20)),
        )
    if not on_disk:
        return ReadImages(StoredImages.in_memory(pixels), kept, damaged)
    files = [paths[i] for i in kept]

    def fetch(rows: Tensor) -> Tensor:
        def read(row: int) -> Tensor:
            try:
                return read_image(files[row], channels=channels, size=size, fit=how)
            except Exception as error:
                raise RunError(f"cannot read {files[row]}: {_explain(error)}") from error

        with ThreadPoolExecutor(min(_THREADS, max(1, len(rows)))) as pool:
            return torch.stack(list(pool.map(read, rows.tolist())))

    images = StoredImages(fetch, (len(files), channels, height, width), torch.device("cpu"))
    return ReadImages(images, kept, damaged)


def _demand_one_size(paths: Sequence[Source], sizes: dict[int, tuple[int, int]]) -> None:
    first = next(iter(sizes))
    for i, size in sizes.items():
        if size != sizes[first]:
            raise ConfigError(
                f"the images have different sizes: {paths[first]} is {'x'.join(map(str, sizes[first]))}, "
                f"{paths[i]} is {'x'.join(map(str, size))}. "
                "Give --image-size N: the shorter side is scaled to N and the middle cut out, or with "
                "--resize both are scaled to N"
            )


def warn_of_cuts(cut: int, count: int) -> None:
    """Warn that some images lose what lies outside their middle, if any does.

    Args:
        cut: images that are not square.
        count: all images.
    """
    if cut:
        log.warning(
            "%d of %d images are not square: what lies outside their middle is cut off. Give --crop if that "
            "is meant, or --resize to squeeze all of them into squares",
            *(cut, count),
        )


def _broken(lines: list[str]) -> ConfigError:
    return ConfigError(
        f"{len(lines)} image(s) cannot be read; repair or remove them, or give --skip-damaged:{_named(lines)}"
    )
