"""Curves of a run, drawn from its ``metrics.csv``."""

import io
import math
from pathlib import Path

from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import RunError, require
from fq_toolkit.training.reporting.metrics_log import read_metrics

# The palette of Okabe and Ito: told apart by colour-blind readers, and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_curves(metrics: Path, target: Path, *, title: str) -> None:
    """Draw every ``panel/curve`` column of a metrics file, one panel per prefix, and write a PNG atomically.

    Args:
        metrics: the CSV file of a run.
        target: the PNG file.
        title: one line above the panels.

    Raises:
        RunError: when there is nothing to draw or a file cannot be read or written.
        MissingExtraError: without matplotlib.
    """
    rows = read_metrics(metrics)
    panels: dict[str, list[str]] = {}
    for row in rows:
        for name in row:
            panel, slash, _ = name.partition("/")
            if slash and name not in panels.setdefault(panel, []):
                panels[panel].append(name)
    if not panels:
        raise RunError(f"{metrics} has no rows to draw yet")
    figures = require(
        "matplotlib.figure", purpose="drawing curves"
    )  # Figure alone: no pyplot, no global backend
    require("matplotlib.backends.backend_agg", purpose="drawing curves")

    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = figures.Figure(figsize=(4.4 * columns, 2.9 * lines + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for place, (panel, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        for color, name in zip(COLORS * (1 + len(names) // len(COLORS)), names, strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            sparse = "o" if len(points) < 15 else None
            axes.plot(*zip(*points, strict=True), color=color, marker=sparse, markersize=3, linewidth=1.2)
            axes.lines[-1].set_label(name.partition("/")[2])
        axes.set_title(panel, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(target, buffer.getvalue())
