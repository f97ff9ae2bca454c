"""NavItem: one instruction with its start, path and goals, independent of the dataset."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.world import NavWorld


class NavItem(NamedTuple):
    """One navigation task.

    instr_id: name of the instruction, unique in its dataset.
    scan: the building.
    heading: initial heading, radians clockwise from +y.
    path: viewpoints of the annotated path; the first is the start.
    goals: viewpoints of which the nearest counts; empty if the annotations keep them secret.
    instruction: the text.
    elevation: initial elevation, radians.
    regions: viewpoints that count for goal progress (NDH).
    """

    instr_id: str
    scan: str
    heading: float
    path: tuple[str, ...]
    goals: tuple[str, ...]
    instruction: str
    elevation: float = 0.0
    regions: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """Return the first viewpoint."""
        return self.path[0]


def unreachable(item: NavItem, where: str) -> DataError:
    """Return the error for an item none of whose goals can be reached."""
    return DataError(
        f"{where}: unreachable goal: no path in scan {item.scan!r} from {item.start!r} to "
        f"{', '.join(map(repr, item.goals))}"
    )


def check_items(items: Iterable[NavItem], world: NavWorld, *, source: str = "items") -> None:
    """Check that all viewpoints exist and that each item can reach one of its goals and regions.

    Args:
        items: the tasks.
        world: the graphs.
        source: file or name, for messages.

    Raises:
        DataError: naming the source, the item and the viewpoint.
    """
    for item in items:
        where = f"{source}: item {item.instr_id!r}"
        try:
            scan = world.scan(item.scan)
            numbers = [scan.locate(v) for v in item.path + item.goals + item.regions]  # one message for all
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        after = len(item.path) + len(item.goals)
        for ends, names in (
            (numbers[len(item.path) : after], item.goals),
            (numbers[after:], item.regions),
        ):
            # Disconnected parts of a building: a teacher could lead to no goal, and progress would be NaN.
            if ends and not np.isfinite(scan.distances[numbers[0], ends]).any():
                raise unreachable(item._replace(goals=names), where)


def check_unique(items: Iterable[NavItem], *, source: str) -> None:
    """Check that no instruction occurs twice.

    Raises:
        DataError: naming the source and the id.
    """
    seen: set[str] = set()
    for item in items:
        if item.instr_id in seen:
            raise DataError(f"{source}: instruction {item.instr_id!r} occurs twice")
        seen.add(item.instr_id)
