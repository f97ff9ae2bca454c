"""What a run was trained on, as one number: a checkpoint is of no use with other data.

Vocabularies are made of the instructions, orders of items and slots of neighbours of the files. None of them
is in the weights, so other data of equal sizes would give every row of the embeddings another word.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fq_toolkit.prevalent.tasks.r2r.data import Split
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import CheckpointError

KEY = "data"
"""Where the state of a trainer keeps its fingerprint."""


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a digest of arrays, tensors, and whatever its ``repr`` tells apart."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.cpu().numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def places(world: NavWorld, features: FeatureStore, scans: Iterable[str]) -> list[Any]:
    """Return what tells buildings apart: their graphs, and the features of one viewpoint of each.

    All features would be gigabytes; those of another network differ everywhere.
    """
    parts: list[Any] = []
    for name in sorted(set(scans)):
        scan = world.scan(name)
        parts += [name, scan.viewpoints, scan.positions, scan.adjacent]
        parts.append(features.panorama(features.rows([(name, scan.viewpoints[0])])))
    return parts


def split_parts(split: Split) -> list[Any]:
    """Return what tells a split apart: its items, in their order, and where they are."""
    return [split.items, *places(split.world, split.features, (item.scan for item in split.items))]


def check_data(state: Mapping[str, Any], found: str, source: str) -> None:
    """Refuse the state of a run that was trained on other data.

    Raises:
        CheckpointError: naming the source.
    """
    if state.get(KEY, found) != found:  # runs from before fingerprints have none
        raise CheckpointError(
            f"the annotations, graphs, features or words of {source} are not those the run was started with, "
            "and its checkpoints are of no use without those. Bring the files back, or start a new run."
        )
