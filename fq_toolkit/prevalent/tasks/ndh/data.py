"""What the NDH trainer trains and validates on: dialogs in generated worlds, or the files of CVDN."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.data.annotations import load_ndh, load_planner_goals
from fq_toolkit.prevalent.data.leak_guard import whole_path, words_of
from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.miniworld.dialogs import dialog_items, planner_goal
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.loading import Dataset, HeldOut, first_items, load_splits
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld


class NDHData(NamedTuple):
    """The splits, and for each of them ``inst_idx`` -> end of the planner's path."""

    train: Split
    validation: dict[str, Split]
    planner: Mapping[str, Mapping[str, str]]


def ndh_dataset(config: NDHConfig) -> Dataset:
    """Return how the items of NDH are made and read; the options say whose path is learned."""

    def generate(world: MiniWorld, count: int, seed: int) -> list[NavItem]:
        return dialog_items(world, count, seed=seed, target=config.target)

    def read(path: Path, world: NavWorld, held_out: HeldOut) -> list[NavItem]:
        # Short ways in the same building may well coincide; in a building of val_unseen none may.
        items = load_ndh(path, target=config.target, world=world, held_out=held_out.get("val_unseen", ()))
        secret = [item for rows in held_out.values() for item in rows]
        check_dialogs(items, secret, source=str(path), world=world)
        return items

    return Dataset("NDH", generate, read)


def load_ndh_data(config: NDHConfig) -> NDHData:
    """Load or generate all splits.

    Raises:
        DataError: naming file and item, for damaged files, viewpoints that do not exist, unreachable goals,
            missing features, or a dialog of a validation split in the training split.
        ConfigError: for an unknown kind of feature file.
    """
    splits = load_splits(config, ndh_dataset(config))
    planner = {split.name: planner_goals(split) for split in (splits.train, *splits.validation.values())}
    splits = splits.each(first_items(config.limit))
    return NDHData(splits.train, splits.validation, planner)


def planner_goals(split: Split) -> dict[str, str]:
    """Return ``inst_idx`` -> end of the planner's path, from the file of a split or its generated world.

    Raises:
        DataError: naming file and item, for a viewpoint that does not exist.
    """
    world = split.world
    if isinstance(world, MiniWorld):
        return {item.instr_id: planner_goal(world, item) for item in split.items}
    planner = load_planner_goals(split.source)
    check_planner(split, planner)
    return planner


def check_planner(split: Split, planner: Mapping[str, str]) -> None:
    """Check that the planner's goals exist: scores need them, whosever path is the annotated one.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        if item.instr_id not in planner:  # its goals are secret, which is said where they are needed
            continue
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
    secret = {_turn(item, world): item.instr_id for item in held_out}
    for item in training:
        other = secret.get(_turn(item, world))
        if other is not None:
            raise DataError(
                f"{source}: item {item.instr_id!r} is the held-out item {other!r}: leave it out of training"
            )


def shown_turns(training: Iterable[NavItem], items: Iterable[NavItem], world: NavWorld) -> list[NavItem]:
    """Return the items that are among those that were trained on: the same scan, path and words."""
    known = {_turn(item, world) for item in training}
    return [item for item in items if _turn(item, world) in known]


def _turn(item: NavItem, world: NavWorld | None) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return what makes a dialog turn the same as another one."""
    return item.scan, whole_path(item.scan, item.path, world), words_of(item.instruction)
