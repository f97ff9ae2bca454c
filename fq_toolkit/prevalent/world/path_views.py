"""The views along annotated paths: the input of the speaker."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.environment_dropout import mask_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld


class PathViews(NamedTuple):
    """Paths of a batch with T steps, the last of which stops; F is the width of features with their angles.

    chosen: (B, T, F), features of the neighbour that the path moves to; zeros for stop and padding.
    views: (B, T, 36, F), the panorama, angles relative to the heading.
    mask: bool (B, T), true for steps.
    """

    chosen: Tensor
    views: Tensor
    mask: Tensor


def path_actions(world: NavWorld, item: NavItem) -> list[int]:
    """Return the actions of `BatchedNavEnv` that follow the annotated path; the last one stops.

    Raises:
        DataError: naming the item, for a step over a non-edge or an unknown viewpoint.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> world = MiniWorld(0)
        >>> item = world.items(1)[0]
        >>> len(path_actions(world, item)) == len(item.path), path_actions(world, item)[-1]
        (True, 0)
    """
    try:
        scan = world.scan(item.scan)
        nodes = [scan.locate(viewpoint) for viewpoint in item.path]
        return [*(1 + scan.slot(here, there) for here, there in pairwise(nodes)), 0]
    except DataError as error:
        raise DataError(f"item {item.instr_id!r}: {error}") from error


def observe_paths(
    env: BatchedNavEnv, items: Sequence[NavItem], *, feature_mask: Tensor | None = None
) -> PathViews:
    """Walk along the annotated paths of a batch and record what is seen.

    Args:
        env: an environment that returns tensors, with features and interleaved angles.
        items: B tasks.
        feature_mask: (D,), mask of environment dropout.

    Raises:
        ValueError: for an environment that returns arrays.
        DataError: naming the item, for a step over a non-edge or an unknown viewpoint.
    """
    if env.device is None or env.layout != "interleaved":
        raise ValueError("the speaker needs BatchedNavEnv(..., device=..., layout='interleaved')")
    rows = [path_actions(env.world, item) for item in items]
    longest = max(map(len, rows))  # shorter paths stop, and a stopped agent ignores what follows
    actions = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=env.device)
    observation = env.reset(items)
    chosen, views, mask = [], [], []
    for step in actions.T:
        neighbors = observation.candidate_features()
        pick = step[:, None, None].expand(-1, 1, neighbors.shape[-1])
        chosen.append(neighbors.gather(1, pick)[:, 0])
        views.append(observation.view_features())
        mask.append(~observation.ended)  # before the step, so the stop itself is a step
        observation, _, _ = env.step(step)
    walked = torch.stack(mask, dim=1)
    # The row of "stop" is zero, and so is padding after the multiplication: shorter paths add nothing.
    picked = mask_features(torch.stack(chosen, dim=1), feature_mask)
    return PathViews(
        picked * walked[..., None], mask_features(torch.stack(views, dim=1), feature_mask), walked
    )
