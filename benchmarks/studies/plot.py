"""The picture of a study: a point per seed, the mean and its interval per arm, and the differences."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.results import FLOOR, Figures
from benchmarks.studies.statistics import differences, student_interval
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import RunError, require
from fq_toolkit.training.reporting.plots import COLORS


def _draw(axes: Any, by_arm: Mapping[str, Mapping[int, float]], colors: Mapping[str, str]) -> None:
    """Draw each arm as a column: its seeds to the left, mean and interval to the right."""
    for place, (arm, by_seed) in enumerate(by_arm.items()):
        color, values = colors[arm], list(by_seed.values())
        axes.plot([place - 0.12] * len(values), values, "o", color=color, markersize=4, alpha=0.6)
        found = student_interval(values)
        reach = found.high - found.mean
        axes.errorbar(
            [place + 0.12],
            [found.mean],
            yerr=None if math.isinf(reach) else [reach],
            fmt="D",
            color=color,
            markersize=5,
            capsize=5,
        )
    axes.set_xticks(range(len(by_arm)), list(by_arm), fontsize=8)
    axes.set_xlim(-0.5, max(1, len(by_arm)) - 0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def caption(figures: Figures) -> str:
    """Return everything that the figures depend on."""
    setting = figures.setting
    seeds = {seed for by_seed in figures.by_arm(figures.fid).values() for seed in by_seed}
    return (
        f"{setting.title}, {setting.steps} steps, {len(seeds)} seeds, n = {setting.samples} samples; "
        f"commit {setting.commit}{' (modified)' if setting.dirty else ''}; "
        f"{setting.machine}, {setting.device}, threads {setting.threads}\n"
        f"{setting.versions}; points: seeds, diamonds: mean with its 95 % interval"
    )


def plot(figures: Figures, path: Path, *, baseline: str) -> None:
    """Write the picture: the distances on the left, what decides on the right.

    Raises:
        RunError: when no run has ended, or the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    by_arm = figures.by_arm(figures.fid)
    if not by_arm:
        raise RunError("no run has ended yet, so there is nothing to draw")
    figure_module = require("matplotlib.figure", purpose="drawing the study")
    require("matplotlib.backends.backend_agg", purpose="drawing the study")
    base = by_arm.get(baseline, {})
    paired = {arm: differences(base, by_seed) for arm, by_seed in by_arm.items() if arm != baseline}
    paired = {arm: by_seed for arm, by_seed in paired.items() if by_seed}

    figure = figure_module.Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {arm: COLORS[place % len(COLORS)] for place, arm in enumerate(by_arm)}
    _draw(left, by_arm, colors)
    floors = [value for by_seed in figures.by_arm(FLOOR).values() for value in by_seed.values()]
    if floors:
        left.axhline(floors[0], color="black", linestyle="--", linewidth=0.8)
        left.annotate(" real against real", (-0.5, floors[0]), fontsize=7, va="bottom")
    left.set_title(f"{figures.fid}, lower is better", fontsize=9, loc="left")
    _draw(right, paired, colors)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_title(f"minus {baseline}, same seed", fontsize=9, loc="left")
    if not paired:
        right.annotate(
            f"no seed with both {baseline} and another arm", (0.05, 0.6), xycoords="axes fraction", fontsize=8
        )
    figure.supxlabel(caption(figures), fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
