"""Whether a run goes on with the images that it was started with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.data.pixels import Images
from fq_toolkit.fqgan.data.unpaired import PARTS, UnpairedDataset
from fq_toolkit.training.storage.measured_data import MeasuredSet

# So many images are looked at: all of them may lie on a disk.
SAMPLED = 1000


def fingerprint(images: Sequence[Images], labels: Tensor | None = None, names: Sequence[str] = ()) -> str:
    """Return a checksum of numbers and sizes of images, all labels and names, and of the images.

    Of each set at most :data:`SAMPLED` images, evenly spread, are looked at.

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


def real_images(source: str, data: ImageDataset) -> dict[str, MeasuredSet]:
    """Return what a GAN is measured on: the images that it is trained on."""
    found = fingerprint([data.images], data.labels, data.class_names)
    return {"images": MeasuredSet(source, found, len(data.images))}


def translated_images(source: str, data: UnpairedDataset) -> dict[str, MeasuredSet]:
    """Return what translators are measured on: the images of both domains that are kept for that."""
    found = {}
    for part, images in zip(PARTS[2:], (data.test_a, data.test_b), strict=True):
        folder = Path(source).expanduser() / part
        found[part] = MeasuredSet(
            str(folder) if folder.is_dir() else source, fingerprint([images]), len(images)
        )
    return found
