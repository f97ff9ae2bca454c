"""Augmentation: new paths with instructions of a speaker, in the format of R2R; and back-translation."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from fq_toolkit.prevalent.data.annotations import r2r_items
from fq_toolkit.prevalent.data.leak_guard import LeakGuard, check_disjoint
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.speaker import Speaker, retell
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.paths import distinct_paths
from fq_toolkit.prevalent.world.world import NavWorld

_LOG = logging.getLogger("fq_toolkit")

FIRST_ID = 1_000_000
"""Path ids of augmented paths begin here, above those of R2R."""


def training_world(world: NavWorld, training: Iterable[NavItem]) -> NavWorld:
    """Return a world with only the scans of the training split, in the order of the world.

    Args:
        world: the graphs of all splits.
        training: items of the training split.

    Raises:
        DataError: for a scan that the world lacks.
    """
    scans = {item.scan for item in training}
    lost = sorted(scans - set(world.names))
    if lost:
        world.scan(lost[0])  # says that it is missing
    return NavWorld(world.scan(name) for name in world.names if name in scans)


def sample_new_paths(
    world: NavWorld,
    count: int | None,
    *,
    seed: int,
    held_out: Iterable[NavItem] = (),
    min_length: float = 5.0,
    min_edges: int = 4,
    max_edges: int = 6,
) -> list[tuple[str, list[str]]]:
    """Draw distinct shortest paths, none of which is or contains a held-out path.

    Args:
        world: the graphs of the training scans.
        count: how many; None for all there are. If there are fewer, all are returned and a warning is logged.
        seed: of the draw.
        held_out: items of validation and test splits.
        min_length: metres.
        min_edges: of a path.
        max_edges: of a path.

    Returns:
        (scan, viewpoints) of each path.

    Raises:
        DataError: when the world has no such paths, or none that is not held out.
    """
    guard = LeakGuard(held_out, world=world, longer_by=1, texts=False)

    def is_free(scan: str, path: tuple[str, ...]) -> bool:
        return guard.find(NavItem("", scan, 0.0, path, path[-1:], "")) is None

    bounds = {"min_length": min_length, "min_edges": min_edges, "max_edges": max_edges}
    paths = distinct_paths(world, count, seed=seed, accept=is_free, **bounds)  # type: ignore[arg-type]
    kind = f"of at least {min_length:g} m and {min_edges} to {max_edges} edges"
    if not paths:
        if distinct_paths(world, 1, seed=seed, **bounds):  # type: ignore[arg-type]
            raise DataError(
                f"of the paths {kind} there is none that is not held out: are these the scans of a "
                "validation split?"
            )
        raise DataError(f"the scans have no path {kind}: lower min_length or min_edges")
    if count is not None and len(paths) < count:
        _LOG.warning("%d paths were asked for; only %d different ones %s exist", count, len(paths), kind)
    return paths


def augment_records(
    world: NavWorld,
    features: FeatureStore,
    speaker: Speaker,
    n_paths: int | None,
    seed: int,
    *,
    held_out: Iterable[NavItem] = (),
    sample: bool = False,
    instructions: int = 1,
    batch_size: int = 64,
    min_length: float = 5.0,
    min_edges: int = 4,
    max_edges: int = 6,
) -> list[dict[str, Any]]:
    """Return new paths with instructions as the items of an R2R file; see `augment`.

    Returns:
        ``{path_id, scan, heading, path, distance, instructions}``, ids from 1000000.

    Raises:
        ValueError: for counts below 1.
        DataError: as `sample_new_paths`, or for features of another width than the speaker's.
    """
    if min(1 if n_paths is None else n_paths, instructions, batch_size) < 1:
        raise ValueError(
            f"n_paths, instructions and batch_size must be at least 1, got {n_paths}, {instructions}, "
            f"{batch_size}"
        )
    if features.dim != speaker.feature_dim:
        raise DataError(
            f"{features!r} has features of width {features.dim}; the speaker was trained on "
            f"{speaker.feature_dim}"
        )
    held_out = list(held_out)
    paths = sample_new_paths(
        world,
        n_paths,
        seed=seed,
        held_out=held_out,
        min_length=min_length,
        min_edges=min_edges,
        max_edges=max_edges,
    )
    # A stream of its own, so that more instructions or other words leave paths and headings as they are.
    headings = np.random.default_rng([seed, 1]).uniform(0, 2 * np.pi, len(paths)).round(3).tolist()
    records = [
        {
            "path_id": FIRST_ID + number,
            "scan": scan,
            "heading": heading,
            "path": path,
            "distance": round(world.distance(scan, path[0], path[-1]), 2),
            "instructions": [""] * instructions,
        }
        for number, ((scan, path), heading) in enumerate(zip(paths, headings, strict=True))
    ]
    env = BatchedNavEnv(world, features, device=speaker.device, angle_dim=speaker.angle_dim)
    generator = torch.Generator().manual_seed(seed)
    was_training = speaker.training
    speaker.eval()
    try:
        for number in range(instructions):
            for start in range(0, len(records), batch_size):
                batch = records[start : start + batch_size]
                told = retell(
                    speaker, env, _bare_items(batch), sample=sample or number > 0, generator=generator
                )
                for record, item in zip(batch, told, strict=True):
                    record["instructions"][number] = item.instruction
    finally:
        speaker.train(was_training)
    # A second look at what is written: paths were drawn around what is held out.
    check_disjoint(
        _bare_items(records), held_out, source="the augmented paths", world=world, longer_by=1, texts=False
    )
    return records


def _bare_items(records: Sequence[dict[str, Any]]) -> list[NavItem]:
    """Return the paths of records as items without instructions."""
    return [
        NavItem(
            str(record["path_id"]),
            record["scan"],
            record["heading"],
            tuple(record["path"]),
            (record["path"][-1],),
            "",
        )
        for record in records
    ]


def augment(
    world: NavWorld,
    features: FeatureStore,
    speaker: Speaker,
    n_paths: int | None,
    seed: int,
    **options: Any,
) -> list[NavItem]:
    """Sample paths and let a speaker describe them.

    Args:
        world: the graphs of the training scans; never those of an unseen split.
        features: of its views, of the width that the speaker was trained on.
        speaker: a trained one.
        n_paths: different paths, drawn evenly over the scans, of at least 5 m and 4 to 6 edges; None, or more
            than there are, gives all.
        seed: of paths, headings and words.
        options: ``held_out`` (items of validation splits, none of whose paths is drawn), ``sample`` (draw
            words instead of the likeliest), ``instructions`` (per path; from the second on they are drawn),
            ``batch_size``, ``min_length`` (metres), ``min_edges`` and ``max_edges``.

    Returns:
        ``instructions`` items of each path.

    Raises:
        ValueError: as `augment_records`.
        DataError: as `augment_records`.
    """
    records = augment_records(world, features, speaker, n_paths, seed, **options)
    return r2r_items(records, "augmented paths")
