"""The picture of a study with many arms: a panel per metric, an arm per row, a point per seed."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.studies.results import DIVERGED, Figures
from benchmarks.studies.statistics import student_interval
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import require
from fq_toolkit.training.reporting.plots import COLORS


class Panel(NamedTuple):
    """A metric and the factor that it is drawn with: 100 for percent."""

    metric: str
    factor: float = 1.0


def caption(figures: Figures, *, samples: str) -> str:
    """Return everything that the figures depend on.

    Args:
        figures: of one setting.
        samples: what was measured, for example ``held-out sentences``.
    """
    s = figures.setting
    return (
        f"{s.title}, {s.steps} steps, {s.samples} {samples}; commit {s.commit}"
        f"{' (modified)' if s.dirty else ''}; {s.machine}, threads {s.threads}\n{s.versions}; "
        "points: seeds, diamonds: mean with its 95 % interval"
    )


def diverged(figures: Figures) -> list[str]:
    """Return a sentence for each arm with runs that have no figures."""
    return [
        f"\n{arm} diverged with seed {', '.join(map(str, sorted(by_seed)))}."
        for arm, by_seed in figures.by_arm(DIVERGED).items()
    ]


def draw(figures: Figures, arms: Sequence[str], panels: Sequence[Panel], path: Path, *, samples: str) -> None:
    """Write the picture.

    Raises:
        RunError: when the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    module = require("matplotlib.figure", purpose="drawing the study")
    require("matplotlib.backends.backend_agg", purpose="drawing the study")
    figure = module.Figure(figsize=(2.0 + 2.4 * len(panels), 1.2 + 0.4 * len(arms)), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        by_arm = figures.by_arm(panel.metric)
        for place, arm in enumerate(arms):
            values = [panel.factor * value for value in by_arm.get(arm, {}).values()]
            if not values:
                continue
            color = COLORS[place % len(COLORS)]
            axes.plot(values, [place - 0.12] * len(values), "o", color=color, markersize=4, alpha=0.6)
            found = student_interval(values)
            reach = None if math.isinf(found.high) else [found.high - found.mean]
            axes.errorbar([found.mean], [place + 0.12], xerr=reach, fmt="D", color=color, capsize=4)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_title(panel.metric + (", %" if panel.factor == 100 else ""), fontsize=9, loc="left")
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].invert_yaxis()
    figure.supxlabel(caption(figures, samples=samples), fontsize=6)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    write_atomic(path, target.getvalue())
