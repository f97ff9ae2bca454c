"""What the R2R trainer trains and validates on: generated worlds, or the real graphs and annotations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.data.annotations import load_r2r
from fq_toolkit.prevalent.data.leak_guard import check_disjoint
from fq_toolkit.prevalent.data.splits import UNSEEN, Split, unseen_paths, warn_without_validation
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.r2r.config import MINI, R2RConfig
from fq_toolkit.prevalent.world.features import SYNTHETIC, FeatureStore, open_features
from fq_toolkit.prevalent.world.items import NavItem, check_items
from fq_toolkit.prevalent.world.world import NavWorld


class R2RData(NamedTuple):
    """The splits; ``augmented`` is None without more instructions."""

    train: Split
    augmented: Split | None
    validation: dict[str, Split]


def load_r2r_data(config: R2RConfig) -> R2RData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a validation path in a training split.
        ConfigError: for an unknown kind of feature file.
    """
    data = _mini_splits(config) if config.data == MINI else _real_splits(config)
    if config.limit is not None:
        data = _each(data, lambda split: split._replace(items=split.items[: config.limit]))
    if config.blind:
        data = _each(data, _blind)
    if config.shuffle_instructions:
        data = _each(data, _shuffle)
    return data


def _each(data: R2RData, change: Callable[[Split], Split]) -> R2RData:
    """Return the data with every split changed."""
    return R2RData(
        change(data.train),
        None if data.augmented is None else change(data.augmented),
        {name: change(split) for name, split in data.validation.items()},
    )


def _blind(split: Split) -> Split:
    store = split.features
    nothing = np.zeros((len(store), 36, store.dim), dtype=np.float16)
    return split._replace(features=FeatureStore(store.keys, nothing))


def _shuffle(split: Split) -> Split:
    """Give every item the instruction of another one."""
    return split._replace(items=shuffle_instructions(split.items, seed=0))


def shuffle_instructions(items: Sequence[NavItem], *, seed: int) -> list[NavItem]:
    """Return the items with their instructions exchanged: each gets that of another one.

    Args:
        items: at least two.
        seed: of the exchange.

    Raises:
        DataError: for fewer items.

    Example:
        >>> items = MiniWorld(0).items(5)
        >>> exchanged = shuffle_instructions(items, seed=0)
        >>> any(a.instruction == b.instruction for a, b in zip(items, exchanged))
        False
    """
    if len(items) < 2:
        raise DataError(f"instructions cannot be exchanged among {len(items)} items: it takes at least two")
    order = np.random.default_rng(seed).permutation(len(items))
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)  # one cycle, so nothing stays in its place
    return [item._replace(instruction=items[j].instruction) for item, j in zip(items, source, strict=True)]


def _mini_splits(config: R2RConfig) -> R2RData:
    width = config.synthetic_dim
    seen = MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=width)
    unseen = MiniWorld(config.world_seed + UNSEEN, num_scans=max(6, config.scans // 2), feature_dim=width)
    inside, outside = (f"MiniWorld({world.seed})" for world in (seen, unseen))
    train = Split("train", seen.items(config.train_items, seed=1), seen, seen.features(), source=inside)
    other = unseen_paths(seen.items(2 * config.validation_items, seed=2), train.items)
    validation = {
        "val_seen": train._replace(name="val_seen", items=other[: config.validation_items]),
        "val_unseen": Split(
            "val_unseen",
            unseen.items(config.validation_items, seed=3),
            unseen,
            unseen.features(),
            source=outside,
        ),
    }
    return R2RData(train, _augmented(config, train, validation), validation)


def _real_splits(config: R2RConfig) -> R2RData:
    folder = Path(config.data)
    world = NavWorld.from_connectivity(str(config.connectivity))
    files = {name: folder / f"R2R_{name}.json" for name in ("train", "val_seen", "val_unseen")}
    found = {
        name: load_r2r(path, world=world) for name, path in files.items() if name != "train" and path.exists()
    }
    warn_without_validation(found, files)
    held_out = [item for items in found.values() for item in items]
    items = load_r2r(files["train"], world=world, held_out=held_out)
    features = open_features(
        config.features,
        world,
        dim=config.feature_dim,
        synthetic_dim=config.synthetic_dim,
        columns=config.feature_columns,
    )
    train = Split("train", items, world, features, config.features == SYNTHETIC, str(files["train"]))
    validation = {
        name: train._replace(name=name, items=rows, source=str(files[name])) for name, rows in found.items()
    }
    return R2RData(train, _augmented(config, train, validation), validation)


def _augmented(config: R2RConfig, train: Split, validation: dict[str, Split]) -> Split | None:
    """Return the items of the file of more instructions, none of whose paths is held out."""
    if config.augmented is None:
        return None
    items = load_r2r(config.augmented)
    held_out = [item for split in validation.values() for item in split.items]
    check_items(items, train.world, source=config.augmented)
    check_disjoint(
        items,
        held_out,
        source=config.augmented,
        world=train.world,
        longer_by=1,
        texts=config.data != MINI,  # a generated world says the same of many paths
    )
    return train._replace(name="augmented", items=items, source=config.augmented)
