"""Reading pictures with pillow: any mode, any size, turned as the camera was held."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.fqgan.pixels import StoredImages
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.extras import require

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# More than this stays on disk and is read again whenever it is looked at.
MEMORY_LIMIT = 4 * 2**30
_THREADS, _NAMED = 8, 5
_TURNED_BY_CAMERAS = ("JPEG", "MPO", "TIFF", "WEBP")  # a look at the notes of others decodes the picture
_GRAY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")


def is_image(path: Path) -> bool:
    """Return whether a file's name is that of a picture; hidden files are none."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _open(path: Path) -> Any:
    return require("PIL.Image", purpose="reading images").open(path)


def read_image(path: Path, *, channels: int, size: int = 0) -> Tensor:
    """Read one picture -> uint8 (channels, H, W).

    Transparent parts become white, 16-bit grays lose their lower half, of a moving picture the first frame
    is taken, and the rotation that a camera notes is done. Numbers of 32 bits have no white that is known,
    and are refused.

    Args:
        path: the file.
        channels: 1 for gray, 3 for colour.
        size: scale the shorter side to this and cut out the middle; 0 leaves the size as it is.

    Raises:
        ValueError: when the file is broken, or holds numbers instead of brightness.
        OSError: when it cannot be read.
    """
    pictures = require("PIL.Image", purpose="reading images")
    with _open(path) as picture:
        _demand_brightness(picture)
        clear = picture.info.get("transparency") if picture.mode.startswith("I") else None
        if picture.format in _TURNED_BY_CAMERAS:
            picture = require("PIL.ImageOps", purpose="reading images").exif_transpose(picture)
        if picture.mode in ("RGBA", "LA", "PA") or (clear is None and "transparency" in picture.info):
            picture = picture.convert("RGBA")
            picture = pictures.alpha_composite(pictures.new("RGBA", picture.size, "white"), picture)
        elif picture.mode.startswith("I"):  # 16 bits, in pillow's 32-bit mode after it was turned
            deep = np.asarray(picture, dtype=np.int64)
            gray = (deep >> 8).clip(0, 255).astype(np.uint8)
            picture = pictures.fromarray(np.where(deep == clear, 255, gray).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if size:
            width, height = picture.size
            scale = size / min(width, height)
            wide, high = max(size, round(width * scale)), max(size, round(height * scale))
            left, top = (wide - size) // 2, (high - size) // 2
            picture = picture.resize((wide, high), pictures.Resampling.BILINEAR)
            picture = picture.crop((left, top, left + size, top + size))
        pixels = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)


def _demand_brightness(picture: Any) -> None:
    """Refuse floats, and 32-bit integers of a format that can say what is meant by 16 bits."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise ValueError(f"32-bit numbers (mode {picture.mode}), of which 8 bits cannot be made; convert it")


def _look(path: Path) -> "tuple[tuple[int, int], str] | str":
    """Return size and mode of a picture from its head alone, or what is wrong with it."""
    try:
        with _open(path) as picture:
            _demand_brightness(picture)
            size, mode = picture.size, picture.mode
            turned = picture.format in _TURNED_BY_CAMERAS and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (size[::-1] if turned else size), mode
    except Exception as error:  # pillow raises whatever a broken file provokes
        return f"{type(error).__name__}: {error}"


def _named(lines: list[str]) -> str:
    more = f"\n  and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "".join(f"\n  {line}" for line in lines[:_NAMED]) + more


def read_images(paths: list[Path], *, size: int = 0, channels: int = 0) -> StoredImages:
    """Read pictures into memory, or prepare to read them from disk when they are too many for it.

    Args:
        paths: the files.
        size: see :func:`read_image`; 0 demands that all have one size already.
        channels: 1 for gray, 3 for colour; 0 for gray if all files are gray, else colour.

    Raises:
        ConfigError: naming the files that are broken, or two of different size.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(_look, paths))
    broken = [f"{path}: {look}" for path, look in zip(paths, looks, strict=True) if isinstance(look, str)]
    if broken:
        raise _broken(broken)
    heads = [look for look in looks if not isinstance(look, str)]
    channels = channels or (1 if all(mode in _GRAY for _, mode in heads) else 3)
    width, height = (size, size) if size else heads[0][0]
    if not size:
        other = next((i for i, (found, _) in enumerate(heads) if found != (width, height)), None)
        if other is not None:
            found = heads[other][0]
            raise ConfigError(
                f"the images have different sizes: {paths[0]} is {width}x{height}, {paths[other]} is "
                f"{found[0]}x{found[1]}. "
                "Give --image-size N: the shorter side is scaled to N and the middle cut out"
            )
    shape = (len(paths), channels, height, width)

    def fetch(rows: Tensor) -> Tensor:
        def read(row: int) -> Tensor:
            try:
                return read_image(paths[row], channels=channels, size=size)
            except Exception as error:
                raise RunError(f"cannot read {paths[row]}: {type(error).__name__}: {error}") from error

        with ThreadPoolExecutor(min(_THREADS, max(1, len(rows)))) as pool:
            return torch.stack(list(pool.map(read, rows.tolist())))

    if len(paths) * channels * height * width > MEMORY_LIMIT:
        return StoredImages(fetch, shape, torch.device("cpu"))
    pixels = torch.empty(shape, dtype=torch.uint8)

    def load(row: int) -> "str | None":
        try:
            pixels[row] = read_image(paths[row], channels=channels, size=size)
        except Exception as error:
            return f"{paths[row]}: {type(error).__name__}: {error}"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        broken = [fault for fault in pool.map(load, range(len(paths))) if fault]
    if broken:
        raise _broken(broken)
    return StoredImages.in_memory(pixels)


def _broken(lines: list[str]) -> ConfigError:
    return ConfigError(f"{len(lines)} image(s) cannot be read; repair or remove them:{_named(lines)}")
