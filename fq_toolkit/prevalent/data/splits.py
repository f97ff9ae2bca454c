"""Splits: tasks with the world they lie in, their checks before training, and their fingerprint.

A checkpoint is useless with other data: vocabularies come from the instructions, the order of items and the
slots of neighbours from the files. None of them is in the weights, so with other data of equal size every row
of the embeddings would stand for another word.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld

UNSEEN = 1_000_003
"""What is added to the seed of the training world to get that of the unseen one."""


class Split(NamedTuple):
    """Tasks of one split and the world they lie in.

    name: ``train``, ``augmented``, ``val_seen`` or ``val_unseen``.
    items: the tasks.
    world: the graphs.
    features: the features of all viewpoints of the world.
    synthesised: whether the features are noise, which every figure must mention.
    source: file or name of the world that the tasks come from, for messages.
    """

    name: str
    items: list[NavItem]
    world: NavWorld
    features: FeatureStore
    synthesised: bool = False
    source: str = "items"

    def env(self, device: torch.device | str) -> BatchedNavEnv:
        """Return an environment that gives tensors on a device."""
        return BatchedNavEnv(self.world, self.features, device=device)


class Splits(NamedTuple):
    """The training split, and the validation splits by name."""

    train: Split
    validation: dict[str, Split]

    def each(self, change: Callable[[Split], Split]) -> "Splits":
        """Apply a function to every split."""
        return Splits(change(self.train), {name: change(split) for name, split in self.validation.items()})

    def held_out(self) -> list[NavItem]:
        """Return the items of all validation splits."""
        return [item for split in self.validation.values() for item in split.items]


def unseen_paths(items: Sequence[NavItem], training: Sequence[NavItem]) -> list[NavItem]:
    """Return the items whose path is not that of a training item."""
    known = {(item.scan, item.path) for item in training}  # val_seen shares buildings, not paths
    return [item for item in items if (item.scan, item.path) not in known]


def check_split(split: Split) -> None:
    """Check that there are items, and finite features of every viewpoint that an agent may reach.

    Raises:
        DataError: naming the source.
    """
    if not split.items:
        raise DataError(f"{split.source}: no instruction")
    # Of whole buildings, not only of annotated paths: a learning agent walks anywhere.
    for name in sorted({item.scan for item in split.items}):
        split.features.check((name, viewpoint) for viewpoint in split.world.scan(name).viewpoints)


def check_goals(split: Split) -> None:
    """Check that every item has a goal; without one there is neither a teacher nor a score.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        if not item.goals:
            raise DataError(
                f"{split.source}: item {item.instr_id!r} holds only the start: a split that keeps its goals "
                "secret can neither be learned from nor measured"
            )


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a digest of arrays, tensors, and any other values by their ``repr``."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.cpu().numpy()  # the same digest on every device
        if isinstance(part, np.ndarray):
            # Without them, arrays of equal bytes but other shapes would have one digest.
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def places(world: NavWorld, features: FeatureStore, scans: Iterable[str]) -> list[Any]:
    """Return what distinguishes buildings: their graphs, and the features of one viewpoint of each.

    All features would be gigabytes, and features of another network differ at every viewpoint.
    """
    parts: list[Any] = []
    for name in sorted(set(scans)):
        scan = world.scan(name)
        parts += [name, scan.viewpoints, scan.positions, scan.adjacent]
        parts.append(features.panorama(features.rows([(name, scan.viewpoints[0])])))
    return parts


def split_parts(split: Split) -> list[Any]:
    """Return what distinguishes a split: its items in their order, and the buildings they lie in."""
    return [split.items, *places(split.world, split.features, (item.scan for item in split.items))]
