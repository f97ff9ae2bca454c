"""What the HANNA trainer trains and validates on: requests in generated worlds, or HANNA's files."""

from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.data.annotations import load_hanna, load_r2r
from fq_toolkit.prevalent.data.splits import UNSEEN, Split, unseen_paths, warn_without_validation
from fq_toolkit.prevalent.miniworld.requests import request_items
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.help import Helper, MiniHelper, RouteHelper
from fq_toolkit.prevalent.tasks.navigator_config import MINI
from fq_toolkit.prevalent.world.features import SYNTHETIC, open_features
from fq_toolkit.prevalent.world.world import NavWorld


class HannaData(NamedTuple):
    """The splits, who helps in each, and texts that the vocabulary must know besides the requests."""

    train: Split
    validation: dict[str, Split]
    helpers: dict[str, Helper]
    texts: list[str]


def load_hanna_data(config: HannaConfig) -> HannaData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a path of a validation split in the training split.
        ConfigError: for an unknown kind of feature file.
    """
    data = _mini(config) if config.data == MINI else _real(config)
    if config.limit is None:
        return data
    short = {name: s._replace(items=s.items[: config.limit]) for name, s in data.validation.items()}
    return data._replace(train=data.train._replace(items=data.train.items[: config.limit]), validation=short)


def _mini(config: HannaConfig) -> HannaData:
    seen = MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=config.synthetic_dim)
    unseen = MiniWorld(
        config.world_seed + UNSEEN, num_scans=max(6, config.scans // 2), feature_dim=config.synthetic_dim
    )
    name, other_name = (f"MiniWorld({world.seed})" for world in (seen, unseen))
    train = Split(
        "train", request_items(seen, config.train_items, seed=1), seen, seen.features(), source=name
    )
    other = unseen_paths(request_items(seen, 2 * config.validation_items, seed=2), train.items)
    validation = {
        "val_seen": train._replace(name="val_seen", items=other[: config.validation_items]),
        "val_unseen": Split(
            "val_unseen",
            request_items(unseen, config.validation_items, seed=3),
            unseen,
            unseen.features(),
            source=other_name,
        ),
    }
    inside, outside = MiniHelper(seen), MiniHelper(unseen)
    told = [inside.help(item.scan, item.start, item.heading, item.goals) for item in train.items]
    texts = [help_.text for help_ in told if help_ is not None]
    return HannaData(train, validation, {"train": inside, "val_seen": inside, "val_unseen": outside}, texts)


def _real(config: HannaConfig) -> HannaData:
    folder, world = Path(config.data), NavWorld.from_connectivity(str(config.connectivity))
    files = {name: folder / f"hanna_{name}.json" for name in ("train", "val_seen", "val_unseen")}
    found = {
        name: load_hanna(path, world=world)
        for name, path in files.items()
        if name != "train" and path.exists()
    }
    warn_without_validation(found, files)
    held_out = [item for items in found.values() for item in items]
    items = load_hanna(files["train"], world=world, held_out=held_out)
    routes = [route for path in config.routes for route in load_r2r(path, world=world)]
    features = open_features(
        config.features,
        world,
        dim=config.feature_dim,
        synthetic_dim=config.synthetic_dim,
        columns=config.feature_columns,
    )
    train = Split("train", items, world, features, config.features == SYNTHETIC, str(files["train"]))
    helper = RouteHelper(world, routes)
    scans = {item.scan for item in items}
    texts = [route.instruction for route in routes if route.scan in scans]
    validation = {
        name: train._replace(name=name, items=rows, source=str(files[name])) for name, rows in found.items()
    }
    return HannaData(train, validation, dict.fromkeys(("train", *validation), helper), texts)
