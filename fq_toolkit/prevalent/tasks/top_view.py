"""A building seen from above: its graph, the path taken, the annotated path, and the goal."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.tasks.navigate import Journey, describe
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import require

_TAKEN, _REFERENCE, _GRAPH = "#d1495b", "#30638e", "#c8c8c8"
_LABELLED = 40  # viewpoints up to which all are named


def draw_top_view(journey: Journey, path: Path) -> Path:
    """Write a PNG of an episode.

    Args:
        journey: the episode.
        path: the file.

    Returns:
        The file.

    Raises:
        MissingExtraError: without matplotlib.
        RunError: when the file cannot be written.
    """
    figure_module: Any = require("matplotlib.figure", purpose="drawing the path")
    require("matplotlib.backends.backend_agg", purpose="drawing the path")
    split, item = journey.split, journey.item
    scan = split.world.scan(item.scan)
    x, y = scan.positions[:, 0], scan.positions[:, 1]
    figure = figure_module.Figure(figsize=(7.0, 7.0), layout="constrained")
    axes = figure.subplots()
    for i, slot in zip(*np.nonzero(scan.mask), strict=True):
        j = scan.neighbors[i, slot]
        if i < j:  # each edge is there in both directions
            axes.plot([x[i], x[j]], [y[i], y[j]], color=_GRAPH, linewidth=1, zorder=1)
    axes.scatter(x, y, s=14, color=_GRAPH, zorder=2)
    _draw_path(axes, scan, item.path, _REFERENCE, "annotated", offset=-0.06, style="--")
    _draw_path(axes, scan, journey.path, _TAKEN, "taken", offset=0.06, style="-")
    start, end = scan.locate(item.start), scan.locate(journey.path[-1])
    axes.scatter([x[start]], [y[start]], s=70, marker="s", color="black", zorder=5, label="start")
    axes.scatter([x[end]], [y[end]], s=60, marker="X", color=_TAKEN, zorder=6, label="stopped")
    goals = [scan.locate(goal) for goal in item.goals]
    axes.scatter(x[goals], y[goals], s=170, marker="*", color="#edae49", zorder=4, label="goal")
    shown = range(len(scan)) if len(scan) <= _LABELLED else {scan.locate(v) for v in journey.path + item.path}
    for i in shown:
        label = describe(split, item.scan, scan.viewpoints[i])
        label = label.partition(" (")[2].rstrip(")") or label[:6]
        axes.annotate(label, (x[i], y[i]), fontsize=6, xytext=(3, 3), textcoords="offset points")
    scores = journey.scores._asdict()
    axes.set_title(
        f"{item.instr_id} in {item.scan}: NE {scores['NE']:.1f} m, SPL {scores['SPL']:.2f}"
        + (", features synthesised" if split.synthesised else ""),
        fontsize=9,
        loc="left",
    )
    axes.set_xlabel("\n".join(_wrap(item.instruction)), fontsize=8)
    axes.set_aspect("equal")
    axes.legend(fontsize=7, loc="best")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    # Without the name of the software the same episode gives the same bytes with any version of it.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    return path


def _draw_path(
    axes: Any, scan: Any, viewpoints: tuple[str, ...], color: str, label: str, *, offset: float, style: str
) -> None:
    """Draw a path, slightly offset so that two paths along one edge are both visible."""
    rows = [scan.locate(viewpoint) for viewpoint in viewpoints]
    points = scan.positions[rows, :2] + offset
    axes.plot(points[:, 0], points[:, 1], style, color=color, linewidth=2, zorder=3, label=label)
    for a, b in pairwise(points):
        axes.annotate(
            "",
            xy=(a + b) / 2 + (b - a) * 0.02,
            xytext=(a + b) / 2,
            arrowprops={"arrowstyle": "->", "color": color},
        )


def _wrap(text: str, width: int = 90) -> list[str]:
    """Break a text into lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
