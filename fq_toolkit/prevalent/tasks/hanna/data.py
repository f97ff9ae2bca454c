"""What the HANNA trainer trains and validates on: requests in generated worlds, or HANNA's files."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.data.annotations import load_hanna, load_r2r
from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.miniworld.requests import request_items
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.help import Helper, MiniHelper, RouteHelper
from fq_toolkit.prevalent.tasks.loading import Dataset, HeldOut, first_items, load_splits
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld


class HannaData(NamedTuple):
    """The splits, who helps in each, and texts that the vocabulary must know besides the requests."""

    train: Split
    validation: dict[str, Split]
    helpers: dict[str, Helper]
    texts: list[str]


def _read(path: Path, world: NavWorld, held_out: HeldOut) -> list[NavItem]:
    return load_hanna(path, world=world, held_out=[item for items in held_out.values() for item in items])


HANNA = Dataset("hanna", lambda world, count, seed: request_items(world, count, seed=seed), _read)


def load_hanna_data(config: HannaConfig) -> HannaData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a path of a validation split in the training split.
        ConfigError: for an unknown kind of feature file.
    """
    splits = load_splits(config, HANNA)
    routes = [route for path in config.routes for route in load_r2r(path, world=splits.train.world)]
    helpers = {
        split.name: helper_in(split.world, routes) for split in (splits.train, *splits.validation.values())
    }
    texts = _told(splits.train, helpers["train"], routes)
    splits = splits.each(first_items(config.limit))
    return HannaData(splits.train, splits.validation, helpers, texts)


def helper_in(world: NavWorld, routes: Iterable[NavItem]) -> Helper:
    """Return who helps: in a generated world somebody who knows it, elsewhere routes that were described."""
    return MiniHelper(world) if isinstance(world, MiniWorld) else RouteHelper(world, routes)


def _told(train: Split, helper: Helper, routes: Iterable[NavItem]) -> list[str]:
    """Return what an agent may hear in training."""
    if isinstance(helper, RouteHelper):
        scans = {item.scan for item in train.items}
        return [route.instruction for route in routes if route.scan in scans]
    told = [helper.help(item.scan, item.start, item.heading, item.goals) for item in train.items]
    return [help_.text for help_ in told if help_ is not None]
