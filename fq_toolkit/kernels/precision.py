"""The widest floating dtype of a device: Apple's MPS has no float64."""

from __future__ import annotations

import torch

#: Types of devices without float64.
WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has nothing wider: sums are then rounded as float32 rounds."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def check_exact(device: torch.device) -> None:
    """Refuse what is defined by float64 distances where there is no float64.

    Raises:
        ValueError: naming the option to change.
    """
    if device.type in WITHOUT_FLOAT64:
        raise ValueError(
            f'precision="exact" settles ties by float64 distances, which the device {device.type!r} cannot '
            'compute; build the layer with precision="fast", or run it on the CPU'
        )
