"""Splits that cannot be trained on or measured: said before the first update, not after the last."""

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.speaker import MOST_STEPS
from fq_toolkit.prevalent.tasks.r2r.data import Split
from fq_toolkit.prevalent.world.path_views import path_actions


def check_split(split: Split) -> None:
    """Check that there are items, and finite features of every viewpoint that an agent may come to.

    Raises:
        DataError: naming the source.
    """
    if not split.items:
        raise DataError(f"{split.source}: no instruction")
    for name in sorted({item.scan for item in split.items}):
        split.features.check((name, viewpoint) for viewpoint in split.world.scan(name).viewpoints)


def check_goals(split: Split) -> None:
    """Check that every item has a goal: without one there is no teacher and no score.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        if not item.goals:
            raise DataError(
                f"{split.source}: item {item.instr_id!r} holds only the start: a split that keeps its goals "
                "secret can neither be learned from nor measured"
            )


def check_ways(split: Split) -> None:
    """Check that a speaker can describe every annotated path: neighbours all along, and not too many.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        try:
            steps = len(path_actions(split.world, item))
        except DataError as error:
            raise DataError(f"{split.source}: {error}") from error
        if steps > MOST_STEPS:
            raise DataError(
                f"{split.source}: item {item.instr_id!r} has {steps} steps; the speaker describes at most "
                f"{MOST_STEPS}: leave it out"
            )
