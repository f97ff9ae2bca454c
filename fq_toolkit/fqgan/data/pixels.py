"""Images stored as bytes, which become float32 in [-1, 1] only when they are looked at."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

# How a picture that is not square becomes one.
Fit = Literal["crop", "resize"]
# Pixels that scaling may make at a time, a quarter of a gigabyte in float32.
_MOST = 2**26
# Images that a fingerprint looks at: all of them may lie on a disk.
SAMPLED = 1000


class StoredImages:
    """A stand-in for a float32 tensor (N, C, H, W) in [-1, 1], with the operations that training needs.

    Args:
        fetch: row numbers int64 (n,) on the CPU -> uint8 (n, C, H, W).
        shape: (N, C, H, W).
        device: where looked-at images go.
    """

    def __init__(
        self, fetch: Callable[[Tensor], Tensor], shape: tuple[int, int, int, int], device: torch.device
    ) -> None:
        self._fetch, self.shape, self.device = fetch, torch.Size(shape), device

    @classmethod
    def in_memory(cls, pixels: Tensor) -> "StoredImages":
        """Keep uint8 (N, C, H, W): a quarter of the memory of floats."""
        count, channels, height, width = pixels.shape
        return cls(lambda rows: pixels[rows], (count, channels, height, width), torch.device("cpu"))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: "Tensor | slice | int") -> Tensor:
        """Return images: (n, C, H, W) for row numbers (n,) or a slice, (C, H, W) for one number."""
        if isinstance(rows, int):
            return self[torch.tensor([range(len(self))[rows]])][0]
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        return to_floats(self._fetch(rows.cpu()).to(self.device))

    def split(self, size: int) -> Iterator[Tensor]:
        """Go through all images, ``size`` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self[rows]

    def to(self, device: "torch.device | str") -> "StoredImages":
        """Return the same images, which come to ``device`` when they are looked at."""
        return StoredImages(self._fetch, tuple(self.shape), torch.device(device))  # type: ignore[arg-type]


Images = Tensor | StoredImages


def to_floats(pixels: Tensor) -> Tensor:
    """Map bytes 0..255 to float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Map floats -1..1 to bytes 0..255, clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def resize_and_crop(pixels: Tensor, size: int, *, fit: Fit = "crop") -> Tensor:
    """Scale the shorter side to ``size`` and crop the middle of the longer one, or scale both sides to it.

    Args:
        pixels: uint8 (N, C, H, W).
        size: pixels of a side of the result, uint8 (N, C, size, size).
        fit: ``"crop"``, or ``"resize"``, which squeezes what is not square.

    Raises:
        ValueError: when images are so long that scaling their shorter side makes more than 2^26 pixels.
    """
    height, width = pixels.shape[2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    if fit == "resize":
        target = (size, size)
    if math.prod(target) > _MOST:
        raise ValueError(
            f"images of {width}x{height} pixels would become {target[1]}x{target[0]} before their middle is "
            "cut out: give --resize, or cut them first"
        )
    top, left = (target[0] - size) // 2, (target[1] - size) // 2

    def middle(part: Tensor) -> Tensor:
        return part[:, :, top : top + size, left : left + size]

    if target == (height, width):
        return middle(pixels)
    # A long picture is many times its crop before it is cut: a few at a time keep memory bounded.
    together = max(1, min(1024, _MOST // math.prod(target)))
    parts = [
        middle(functional.interpolate(part.float(), size=target, mode="bilinear", antialias=True))
        for part in pixels.split(together)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def fingerprint(images: Sequence[Images], labels: Tensor | None = None, names: Sequence[str] = ()) -> str:
    """Return a checksum of numbers and sizes of images, all labels and names, and the images themselves.

    Of each set at most `SAMPLED` images are looked at, evenly spread.

    Args:
        images: sets of images (N, C, H, W).
        labels: int64 (N,).
        names: of the classes.
    """
    digest = hashlib.sha256(repr((list(names), [tuple(part.shape) for part in images])).encode())
    for part in images:
        rows = torch.linspace(0, len(part) - 1, min(len(part), SAMPLED), dtype=torch.float64).round().long()
        for some in rows.split(100):
            digest.update(part[some].contiguous().cpu().numpy().tobytes())
    if labels is not None:
        digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
