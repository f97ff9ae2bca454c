"""The study's long-format results: one row per run and metric, appended as soon as a run has ended."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import RunError

FID = "fid["
FLOOR = "real-vs-real floor"
ACCURACY = "class accuracy"
STEP_TIME = "seconds per step"
OTHERS = "busy cores of others"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Setting:
    """What runs must share to be compared: nothing but arm and seed may differ between them.

    ``samples`` is the number of generated images behind the metrics; ``dirty`` says that the code differed
    from the commit; ``data`` says which images, and ``options`` what was changed of the preset.
    """

    preset: str
    steps: int
    samples: int
    commit: str
    dirty: bool
    machine: str
    device: str
    threads: int
    versions: str
    data: str = "digits"
    options: str = ""

    @property
    def title(self) -> str:
        """Preset, changed options and data, where they say more than the preset."""
        parts = [self.preset, *([self.options] if self.options else [])]
        return ", ".join([*parts, *([self.data] if self.data not in parts else [])])


@dataclass(frozen=True)
class Row:
    """One figure of one run."""

    setting: Setting
    arm: str
    seed: int
    metric: str
    value: float
    date: str


_READERS: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "bool": lambda text: text == "True",
}
_TYPES = {field.name: str(field.type) for field in fields(Setting)}
COLUMNS = (
    *("preset", "options", "data", "arm", "seed", "steps", "samples", "metric", "value"),
    *("commit", "dirty", "machine", "device", "threads", "versions", "date"),
)


def _cells(row: Row) -> list[str]:
    cells = {**asdict(row), **asdict(row.setting), "value": repr(row.value)}
    return [str(cells[name]) for name in COLUMNS]


def _parse(cells: dict[str, str]) -> Row:
    setting = Setting(**{name: _READERS[kind](cells[name]) for name, kind in _TYPES.items()})  # type: ignore[arg-type]
    return Row(
        setting, cells["arm"], int(cells["seed"]), cells["metric"], float(cells["value"]), cells["date"]
    )


def _whole_lines(path: Path) -> str:
    """Return the text up to the last end of line: a kill or a full disk cuts what follows short."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1]


def read(path: Path) -> list[Row]:
    """Return the rows of a results file; none when it does not exist.

    Raises:
        ValueError: when it was written with other columns, or a row cannot be read.
    """
    if not path.exists():
        return []
    reader = csv.DictReader(io.StringIO(_whole_lines(path), newline=""))
    names = tuple(reader.fieldnames or ())
    if names not in ((), COLUMNS):
        raise ValueError(
            f"{path} has the columns {names}, expected {COLUMNS}; move the file away and measure again"
        )
    rows = []
    for cells in reader:
        try:
            rows.append(_parse(cells))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; correct or delete the line"
            ) from error
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end of the file, all in one write, and the header where there is none.

    Raises:
        RunError: when the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            write_atomic(path, _whole_lines(path).encode())
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists() or path.stat().st_size == 0:
            writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in rows)
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"cannot write {path}: {explain(error)}") from error


class Figures:
    """The figures of one setting: metric -> arm -> seed -> value, where the newest row of a figure counts."""

    def __init__(self, rows: Sequence[Row], setting: Setting) -> None:
        self.setting = setting
        self.values: dict[str, dict[str, dict[int, float]]] = {}
        for row in rows:
            if row.setting == setting:
                self.values.setdefault(row.metric, {}).setdefault(row.arm, {})[row.seed] = row.value

    @property
    def fid(self) -> str | None:
        """Name of the Frechet distance, which carries its ruler; None while no run has ended."""
        return next((metric for metric in self.values if metric.startswith(FID)), None)

    def by_arm(self, metric: str | None) -> dict[str, dict[int, float]]:
        """Return arm -> seed -> value."""
        return dict(sorted(self.values.get(metric or "", {}).items()))

    def finished(self, last: str) -> set[tuple[str, int]]:
        """Return arm and seed of the runs that need not be run again.

        The rows of a run are written in one piece whose last row is known: where it is, the others are.

        Args:
            last: how the name of that row's metric begins.
        """
        return {
            (arm, seed)
            for metric in self.values
            if metric == DIVERGED or metric.startswith(last)
            for arm, by_seed in self.by_arm(metric).items()
            for seed in by_seed
        }
