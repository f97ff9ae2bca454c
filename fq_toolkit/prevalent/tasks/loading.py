"""Splits of generated worlds and of data folders, written once for the datasets of R2R, NDH and HANNA."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.data.splits import UNSEEN, Split, Splits, unseen_paths
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.config import MINI, DataConfig
from fq_toolkit.prevalent.world.features import SYNTHETIC, open_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld

_LOG = logging.getLogger("fq_toolkit")

VALIDATION = ("val_seen", "val_unseen")
HeldOut = Mapping[str, Sequence[NavItem]]


class Dataset(NamedTuple):
    """How the items of a dataset are made and read.

    stem: its files are named ``STEM_SPLIT.json``.
    generate: (world, count, seed) -> items in a generated world.
    read: (file, world, split name -> items that the file must not show) -> items.
    """

    stem: str
    generate: Callable[[MiniWorld, int, int], list[NavItem]]
    read: Callable[[Path, NavWorld, HeldOut], list[NavItem]]


def load_splits(config: DataConfig, dataset: Dataset) -> Splits:
    """Load or generate the splits of a dataset, whole.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a held-out item in the training split.
        ConfigError: for an unknown kind of feature file.
    """
    return _generated(config, dataset) if config.data == MINI else _annotated(config, dataset)


def _generated(config: DataConfig, dataset: Dataset) -> Splits:
    width, count = config.synthetic_dim, config.validation_items
    seen = MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=width)
    # At least six buildings: with fewer, the figures of one decide those of the split.
    unseen = MiniWorld(config.world_seed + UNSEEN, num_scans=max(6, config.scans // 2), feature_dim=width)
    inside, outside = (f"MiniWorld({world.seed})" for world in (seen, unseen))
    items = dataset.generate(seen, config.train_items, 1)
    train = Split("train", items, seen, seen.features(), source=inside)
    # Twice as many as are wanted: in the same buildings some ways are those of the training split.
    others = unseen_paths(dataset.generate(seen, 2 * count, 2), items)[:count]
    far = dataset.generate(unseen, count, 3)
    return Splits(
        train,
        {
            "val_seen": train._replace(name="val_seen", items=others),
            "val_unseen": Split("val_unseen", far, unseen, unseen.features(), source=outside),
        },
    )


def _annotated(config: DataConfig, dataset: Dataset) -> Splits:
    folder, world = Path(config.data), NavWorld.from_connectivity(str(config.connectivity))
    files = {name: folder / f"{dataset.stem}_{name}.json" for name in ("train", *VALIDATION)}
    validation = {name: dataset.read(files[name], world, {}) for name in VALIDATION if files[name].exists()}
    if not validation:
        _LOG.warning(
            "%s has neither %s to validate on: the run is not measured, and nothing is held out",
            folder,
            " nor ".join(files[name].name for name in VALIDATION),
        )
    # Last, so that it is checked against everything that is held out.
    items = dataset.read(files["train"], world, validation)
    features = open_features(
        config.features,
        world,
        dim=config.feature_dim,
        synthetic_dim=config.synthetic_dim,
        columns=config.feature_columns,
    )
    # All splits share one world and one store of features; both load a building when it is first asked for.
    train = Split("train", items, world, features, config.features == SYNTHETIC, str(files["train"]))
    return Splits(
        train,
        {
            name: train._replace(name=name, items=rows, source=str(files[name]))
            for name, rows in validation.items()
        },
    )


def first_items(limit: int | None) -> Callable[[Split], Split]:
    """Return a function that keeps the first items of a split; None keeps all."""
    return lambda split: split._replace(items=split.items[:limit])
