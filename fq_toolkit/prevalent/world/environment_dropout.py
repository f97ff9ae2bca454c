"""Environment dropout: one mask over the channels of all features, which makes a new environment."""

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_feature_mask(
    dim: int, rate: float, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """Draw a mask over the channels of the view features, shared by all views of all viewpoints.

    ::

        mask ~ Bernoulli(1 - rate) / (1 - rate);   feature' = mask * feature

    Ordinary dropout draws a new mask for each view, so that an object looks different from every viewpoint;
    one mask for all of them makes a consistent environment that nobody has seen.

    Args:
        dim: D, channels of a view feature without its angles.
        rate: share of channels that is dropped.
        device: device of the mask.
        generator: random source of the draw, on the CPU.

    Returns:
        (D,): 0 or 1 / (1 - rate).

    Raises:
        ValueError: for a rate outside [0, 1).

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.4. Speaker and follower must share the mask.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of environment dropout must be in [0, 1), got {rate}")
    kept = torch.rand(dim, generator=generator) >= rate  # drawn on the CPU: the same mask on every device
    return (kept / (1 - rate)).to(device)


def mask_features(features: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a mask to the view features and leave their angles unchanged.

    Args:
        features: (..., D + angles).
        mask: (D,), or None for no change.

    Returns:
        (..., D + angles).

    Example:
        >>> mask_features(torch.ones(1, 4), torch.tensor([0.0, 2.0])).tolist()
        [[0.0, 2.0, 1.0, 1.0]]
    """
    if mask is None:
        return features
    return features * F.pad(mask, (0, features.shape[-1] - len(mask)), value=1.0)
