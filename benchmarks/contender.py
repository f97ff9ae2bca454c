"""What takes part in a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class AnyShape(Protocol):
    """What every case's shape tells: its names in the results and in tables, and its sizes."""

    @property
    def name(self) -> str:
        """Name in the results."""

    @property
    def label(self) -> str:
        """Name and sizes, for tables."""

    @property
    def rows(self) -> int:
        """What is counted: feature vectors, tokens, time steps."""

    @property
    def dim(self) -> int:
        """Width; 0 where there is none."""

    @property
    def num_codes(self) -> int:
        """Codes of the dictionary; 0 where there is none."""

    @property
    def layout(self) -> str:
        """Memory layout, or which data."""


ShapeType = TypeVar("ShapeType", bound=AnyShape, covariant=True)


@dataclass(frozen=True)
class Problem(Generic[ShapeType]):
    """What a case measures on: a shape and what is drawn for it, the same in every process.

    A subclass has a `seed` and draws its tensors when they are first read.
    """

    shape: ShapeType
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    seed: ClassVar[int] = 0

    def generator(self, stream: int) -> torch.Generator:
        """Return the random numbers of one tensor, which do not depend on what was drawn before."""
        return torch.Generator().manual_seed(self.seed + stream)


class Unavailable(Exception):
    """A contender cannot run here; the message is the reason that the results report."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Task:
    """One contender on one problem: ``run(setup())`` is one call, of which only ``run`` is timed.

    ``indices`` extracts the nearest-code indices from what ``run`` returns, so that wrong ones can be
    counted. ``note`` says what the rows should know, such as the data; empty: the backend of our layers.
    ``scale`` calls in a row make the work that the shape names; rows hold a call's time times that.
    ``every``: takes part in one of so many rounds, for what is far slower than contenders that differ by
    percents.
    """

    run: Callable[[Any], Any]
    setup: Callable[[], Any] = _nothing
    indices: Callable[[Any], Tensor] | None = None
    note: str = ""
    scale: int = 1
    every: int = 1

    @property
    def repeatable(self) -> bool:
        """Whether calls need no fresh state, so that one recorded call can be replayed."""
        return self.setup is _nothing


@dataclass(frozen=True)
class Contender:
    """A named implementation.

    Args:
        name: shown in tables and used as a key in the results.
        build: makes the `Task`; raises `Unavailable` with a reason.
        kind: "ours", "peer", "base" (the same without ours) or "floor".
        package: distribution whose version goes into the results.
        score_arrays: how many float32 arrays of N x K are alive at the peak; tells before it is started
            whether it fits.
        devices: where it can run.
    """

    name: str
    build: Callable[[Any], Task]
    kind: str = "peer"
    package: str = "torch"
    score_arrays: float = 0.0
    devices: tuple[str, ...] = ("cpu", "cuda")

    def reason_to_skip(self, problem: Problem[AnyShape], budget_bytes: int) -> str | None:
        """Return why this contender should not even be started on this problem, or None."""
        if problem.device not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        needed = self.score_arrays * 4 * problem.shape.rows * problem.shape.num_codes
        if needed > budget_bytes:
            return (
                f"does not fit: about {needed / 2**30:.1f} GiB needed, {budget_bytes / 2**30:.0f} GiB allowed"
            )
        return None
