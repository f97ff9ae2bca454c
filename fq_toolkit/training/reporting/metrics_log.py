"""``metrics.csv``: one row per logged step, readable while the run goes on, rewound on resume."""

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import RunError


def format_value(value: float | int | None) -> str:
    """Return a number with six significant digits, an integer whole, nothing for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class MetricsLog:
    """Append-only table of metrics.

    Args:
        path: the CSV file.
        columns: names after ``step``; ``panel/curve`` puts a curve into a panel of the plot.
    """

    def __init__(self, path: Path, columns: "list[str] | tuple[str, ...]") -> None:
        self.path = path
        self.columns = ["step", *columns]

    def rewind(self, step: int) -> None:
        """Keep the rows up to a step (no checkpoint covers those after it), or write the header."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step] if self.path.exists() else []
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in kept:
            writer.writerow([int(row["step"]), *(format_value(row.get(name)) for name in self.columns[1:])])
        write_atomic(self.path, text.getvalue().encode())

    def lacks(self, step: int, row: Mapping[str, float], measured: bool) -> bool:
        """Return whether a step has no row, or was to be measured and has nothing beside ``row``."""
        written = next((line for line in read_metrics(self.path) if line["step"] == step), None)
        return written is None or (measured and not set(written) - {"step", *row})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; columns without a value stay empty.

        Raises:
            ValueError: for a value that has no column.
            RunError: when the file cannot be written.
        """
        unknown = set(values) - set(self.columns)
        if unknown:
            raise ValueError(f"metrics {sorted(unknown)} have no column; columns: {self.columns}")
        cells = [str(step), *(format_value(values.get(name)) for name in self.columns[1:])]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(cells)
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                if file.tell() == 0:  # somebody removed or emptied it while the run went on
                    csv.writer(file, lineterminator="\n").writerow(self.columns)
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {explain(error)}.") from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a metrics file -> rows of name -> value, empty cells left out.

    A last row that was cut short by a kill or a full disk is dropped. An empty file has no rows: that is what
    a crash of the machine can leave of one.

    Raises:
        RunError: when the file cannot be read or has no step column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot read {path}: {explain(error)}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read {path}: it is damaged ({error}). Remove or repair it.") from error
    if not text.strip("\0 \t\r\n"):
        return []
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        records = list(reader)
    except csv.Error as error:
        raise RunError(f"cannot read {path}: it is damaged ({error}). Remove or repair it.") from error
    if "step" not in (reader.fieldnames or ()):
        raise RunError(
            f"{path} has no column 'step'; it is not the metrics file of a run. "
            "Remove it to go on without its rows"
        )
    width = len(reader.fieldnames or ())
    rows = []
    for record in records:
        cells = {name: cell for name, cell in record.items() if name is not None and cell not in (None, "")}
        try:
            row = {name: float(cell) for name, cell in cells.items()}
        except (TypeError, ValueError):
            continue
        if (
            "step" in row
            and math.isfinite(row["step"])
            and len(record) == width
            and None not in record.values()
        ):
            rows.append(row)
    return rows
