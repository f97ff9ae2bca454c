"""What the NDH trainer trains and validates on: dialogs in generated worlds, or the files of CVDN."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.data.annotations import load_ndh, load_planner_goals, ndh_items
from fq_toolkit.prevalent.data.leak_guard import whole_path, words_of
from fq_toolkit.prevalent.data.splits import UNSEEN, Split, warn_without_validation
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.miniworld.dialogs import dialog_records
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.navigator_config import MINI
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.world.features import SYNTHETIC, open_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld


class NDHData(NamedTuple):
    """The splits, and for each of them ``inst_idx`` -> end of the planner's path."""

    train: Split
    validation: dict[str, Split]
    planner: Mapping[str, Mapping[str, str]]


def load_ndh_data(config: NDHConfig) -> NDHData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a dialog of a validation split in the training split.
        ConfigError: for an unknown kind of feature file.
    """
    data = _mini(config) if config.data == MINI else _real(config)
    if config.limit is None:
        return data
    short = {name: s._replace(items=s.items[: config.limit]) for name, s in data.validation.items()}
    return data._replace(train=data.train._replace(items=data.train.items[: config.limit]), validation=short)


def _mini(config: NDHConfig) -> NDHData:
    seen = MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=config.synthetic_dim)
    unseen = MiniWorld(
        config.world_seed + UNSEEN, num_scans=max(6, config.scans // 2), feature_dim=config.synthetic_dim
    )
    items, records = _items(config, seen, config.train_items, 1)
    train = Split("train", items, seen, seen.features(), source=f"MiniWorld({seen.seed})")
    validation, planner = {}, {"train": _planned(records)}
    known = {(item.scan, item.path) for item in train.items}
    for name, world, seed in (("val_seen", seen, 2), ("val_unseen", unseen, 3)):
        items, records = _items(config, world, 2 * config.validation_items, seed)
        items = [item for item in items if (item.scan, item.path) not in known][: config.validation_items]
        features = train.features if world is seen else world.features()
        validation[name] = Split(name, items, world, features, source=f"MiniWorld({world.seed})")
        planner[name] = _planned(records)
    return NDHData(train, validation, planner)


def _planned(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return ``inst_idx`` -> end of the planner's path."""
    return {str(record["inst_idx"]): record["planner_path"][-1] for record in records}


def _items(
    config: NDHConfig, world: MiniWorld, count: int, seed: int
) -> tuple[list[NavItem], list[dict[str, Any]]]:
    records = dialog_records(world, count, seed=seed)
    return ndh_items(records, f"MiniWorld({world.seed})", target=config.target), records


def _real(config: NDHConfig) -> NDHData:
    folder, world = Path(config.data), NavWorld.from_connectivity(str(config.connectivity))
    files = {name: folder / f"NDH_{name}.json" for name in ("val_seen", "val_unseen")}
    there = {name: path for name, path in files.items() if path.exists()}
    warn_without_validation(there, files)
    files = there
    found = {name: load_ndh(path, target=config.target, world=world) for name, path in files.items()}
    source = folder / "NDH_train.json"
    # Short ways in the same building may well coincide; in a building of val_unseen none may.
    items = load_ndh(source, target=config.target, world=world, held_out=found.get("val_unseen", ()))
    check_dialogs(items, [item for rows in found.values() for item in rows], source=str(source), world=world)
    features = open_features(
        config.features,
        world,
        dim=config.feature_dim,
        synthetic_dim=config.synthetic_dim,
        columns=config.feature_columns,
    )
    train = Split("train", items, world, features, config.features == SYNTHETIC, str(source))
    validation = {
        name: train._replace(name=name, items=rows, source=str(files[name])) for name, rows in found.items()
    }
    planner = {name: load_planner_goals(path) for name, path in {"train": source, **files}.items()}
    for split in (train, *validation.values()):
        check_planner(split, planner[split.name])
    return NDHData(train, validation, planner)


def check_planner(split: Split, planner: Mapping[str, str]) -> None:
    """Check that the planner's goals exist: scores need them, whosever path is the annotated one.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        try:
            split.world.scan(item.scan).locate(planner[item.instr_id])
        except DataError as error:
            raise DataError(f"{split.source}: item {item.instr_id!r}: planner_path: {error}") from error


def check_dialogs(
    training: Iterable[NavItem],
    held_out: Iterable[NavItem],
    *,
    source: str,
    world: NavWorld | None = None,
) -> None:
    """Check that no held-out turn is in a training set: the same scan, path and words.

    Raises:
        DataError: naming the source and both items.
    """

    def key(item: NavItem) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        return item.scan, whole_path(item.scan, item.path, world), words_of(item.instruction)

    secret = {key(item): item.instr_id for item in held_out}
    for item in training:
        other = secret.get(key(item))
        if other is not None:
            raise DataError(
                f"{source}: item {item.instr_id!r} is the held-out item {other!r}: leave it out of training"
            )
