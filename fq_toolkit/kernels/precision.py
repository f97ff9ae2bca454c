"""The widest floating dtype of a device: Apple's MPS has no float64."""

from __future__ import annotations

import torch


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has nothing wider: sums are then rounded as float32 rounds.

    The device is asked each time, which costs a microsecond or two: no list of devices would be complete.
    """
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except Exception:  # each device refuses in a way of its own
        return torch.float32
    return torch.float64


def check_exact(device: torch.device) -> None:
    """Refuse what is defined by float64 distances where there is no float64.

    Raises:
        ValueError: naming the option to change.
    """
    if widest(device) != torch.float64:
        raise ValueError(
            f'precision="exact" settles ties by float64 distances, which the device {device.type!r} cannot '
            'compute; build the layer with precision="fast", or run it on the CPU'
        )
