"""What the R2R trainer trains and validates on, with more instructions and the ablations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.data.annotations import load_r2r
from fq_toolkit.prevalent.data.leak_guard import check_disjoint
from fq_toolkit.prevalent.data.splits import Split, Splits
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.tasks.loading import Dataset, HeldOut, first_items, load_splits
from fq_toolkit.prevalent.tasks.r2r.config import MINI, R2RConfig
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem, check_items
from fq_toolkit.prevalent.world.world import NavWorld


class R2RData(NamedTuple):
    """The splits; ``augmented`` is None without more instructions."""

    train: Split
    augmented: Split | None
    validation: dict[str, Split]


def _read(path: Path, world: NavWorld, held_out: HeldOut) -> list[NavItem]:
    return load_r2r(path, world=world, held_out=[item for items in held_out.values() for item in items])


R2R = Dataset("R2R", lambda world, count, seed: world.items(count, seed=seed), _read)


def load_r2r_data(config: R2RConfig) -> R2RData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a validation path in a training split.
        ConfigError: for an unknown kind of feature file.
    """
    splits = load_splits(config, R2R)
    augmented = _augmented(config, splits)  # none of it may be held out, whatever the limit leaves
    for change in (first_items(config.limit), *ablations(config)):
        splits, augmented = splits.each(change), augmented and change(augmented)
    return R2RData(splits.train, augmented, splits.validation)


def ablations(config: R2RConfig) -> list[Callable[[Split], Split]]:
    """Return what the options take from every split: what is seen, or what is said of a path."""
    return [*([_blind] if config.blind else []), *([_shuffle] if config.shuffle_instructions else [])]


def _blind(split: Split) -> Split:
    store = split.features
    nothing = np.zeros((len(store), 36, store.dim), dtype=np.float16)
    # Zeros of the same width, so that the network is that of the seeing agent.
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
        >>> from fq_toolkit.prevalent import MiniWorld
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


def _augmented(config: R2RConfig, splits: Splits) -> Split | None:
    """Return the items of the file of more instructions, none of whose paths is held out."""
    if config.augmented is None:
        return None
    items = load_r2r(config.augmented)  # unchecked: of the training world, which is looked at next
    check_items(items, splits.train.world, source=config.augmented)
    check_disjoint(
        items,
        splits.held_out(),
        source=config.augmented,
        world=splits.train.world,
        longer_by=1,
        texts=config.data != MINI,  # a generated world says the same of many paths
    )
    return splits.train._replace(name="augmented", items=items, source=config.augmented)
