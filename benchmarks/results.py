"""The long-format results: one row per case, shape and contender, in one file per machine."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "results"
#: How the names of files begin that lie in the same folder and have other columns.
STUDY = "study_"

MEASURED = "measured"
SKIPPED = "skipped"
FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One measurement; numbers that do not exist are None.

    Times are milliseconds per call; ``floor_share`` is floor / median; ``wrong_share`` is the share of
    indices that differ from the float64 definition; ``other_cores`` is how many cores other processes kept
    busy meanwhile; ``note`` is the reason of a skip, or which variant was the fastest; ``over_base`` is the
    median over the rounds of the time over that of the contender of kind "base" in the same round.
    """

    case: str
    shape: str
    n: int
    dim: int
    num_codes: int
    layout: str
    dtype: str
    contender: str
    kind: str
    device: str
    machine: str
    threads: int
    python: str
    torch: str
    version: str
    commit: str
    dirty: bool
    date: str
    status: str
    gate: str
    clock: str = ""
    rounds: int | None = None
    median_ms: float | None = None
    q25_ms: float | None = None
    q75_ms: float | None = None
    peak_extra_bytes: int | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    wrong_share: float | None = None
    other_cores: float | None = None
    note: str = ""
    over_base: float | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """Rows of one group are measured together and replaced together."""
        return (self.case, self.shape, self.dtype, self.device, str(self.threads), self.clock_kind)

    @property
    def clock_kind(self) -> str:
        """Graph replays are kept apart from ordinary calls."""
        return "graph" if "graph" in self.clock else ""


_TYPES = {field.name: str(field.type) for field in fields(Row)}


def _write_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _read_cell(name: str, text: str) -> object:
    kind = _TYPES[name]
    if text == "" and "None" in kind:
        return None
    if kind.startswith("int"):
        return int(text)
    if kind.startswith("float"):
        return float(text)
    return text == "True" if kind == "bool" else text


def read(path: Path) -> list[Row]:
    """Return the rows of a results file; none when it does not exist.

    Raises:
        ValueError: the columns are not those of this version.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) not in (list(_TYPES), list(_TYPES)[:-1]):  # over_base came last
            raise ValueError(
                f"{path} has the columns {reader.fieldnames}, expected {list(_TYPES)}; "
                "delete the file and measure again"
            )
        return [Row(**{name: _read_cell(name, text) for name, text in line.items()}) for line in reader]  # type: ignore[arg-type]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows; an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(_TYPES), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _write_cell(value) for name, value in asdict(row).items()} for row in rows)
    os.replace(temporary, path)  # in one step: whoever reads meanwhile sees the old file or the new one


def machine_files(directory: Path = DIRECTORY) -> list[Path]:
    """Return the results files of every machine, without those of studies."""
    return sorted(path for path in directory.glob("*.csv") if not path.name.startswith(STUDY))


def read_all(directory: Path = DIRECTORY) -> list[Row]:
    """Return the rows of every machine."""
    return [row for path in machine_files(directory) for row in read(path)]


def median(rows: Iterable[Row], case: str, shape: str, contender: str) -> float | None:
    """Return the measured median of one contender, or None."""
    for row in rows:
        if (row.case, row.shape, row.contender, row.status) == (case, shape, contender, MEASURED):
            return row.median_ms
    return None


def over_base(rows: Iterable[Row], case: str, shape: str, contender: str) -> float | None:
    """Return the time over the base contender's: round by round where rows have that, else of the medians."""
    here = [row for row in rows if (row.case, row.shape, row.status) == (case, shape, MEASURED)]
    mine = next((row for row in here if row.contender == contender), None)
    base = next((row for row in here if row.kind == "base"), None)
    if mine is None or base is None or mine.median_ms is None or not base.median_ms:
        return None
    return mine.median_ms / base.median_ms if mine.over_base is None else mine.over_base


def peak(rows: Iterable[Row], case: str, shape: str, contender: str) -> int | None:
    """Return the peak extra bytes of one contender, or None."""
    for row in rows:
        if (row.case, row.shape, row.contender) == (case, shape, contender):
            return row.peak_extra_bytes
    return None
