"""Random changes to real images while training.

They draw from torch's global random state, which checkpoints hold: a resumed run repeats them.
"""

import torch
from torch import Tensor


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image of (n, C, H, W) left to right with probability one half."""
    chosen = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def random_crop(images: Tensor, size: int) -> Tensor:
    """Crop a square of ``size`` pixels from each image of (n, C, H, W), at a uniformly random place.

    Raises:
        ValueError: when the images are smaller.
    """
    count, _, height, width = images.shape
    if not 0 < size <= min(height, width):
        raise ValueError(f"cannot cut {size}x{size} pixels out of images of {height}x{width}")
    tops = torch.randint(height - size + 1, (count,), device=images.device)
    lefts = torch.randint(width - size + 1, (count,), device=images.device)
    span = torch.arange(size, device=images.device)
    rows, columns = tops[:, None] + span, lefts[:, None] + span
    each = torch.arange(count, device=images.device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jitter(images: Tensor, size: int) -> Tensor:
    """Mirror and crop images to ``size`` pixels at random, as U-GAT-IT does with 286 -> 256."""
    return random_crop(random_flip(images), size)
