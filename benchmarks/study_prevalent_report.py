"""The table and the picture of the navigation study."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study_results import DIVERGED, Figures
from benchmarks.study_statistics import Interval, differences, student_interval
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.extras import require
from fq_toolkit.training.plots import COLORS

BASELINE = "pretrained"
COLUMNS = ("SR unseen", "SPL unseen", "nDTW unseen", "SR seen", "NE unseen", "CPU seconds")
_PERCENT = ("SR", "SPL", "nDTW", "OSR")


def span(found: Interval, scale: float) -> str:
    """Return a mean and, with several seeds, its 95 % interval."""
    if found.seeds < 2 or math.isinf(found.low):
        return f"{scale * found.mean:.1f}"
    return f"{scale * found.mean:.1f} ({scale * found.low:.1f} to {scale * found.high:.1f})"


def cell(metric: str, by_seed: Mapping[int, float]) -> str:
    """Return a figure of an arm."""
    if not by_seed:
        return "–"
    scale = 100 if metric.startswith(_PERCENT) else 1
    return span(student_interval(list(by_seed.values())), scale)


def table(figures: Figures, arms: Sequence[str]) -> str:
    """Arms by metrics as markdown: means with 95 % intervals; SR, SPL and nDTW in percent."""
    head = [*COLUMNS, f"SR unseen minus {BASELINE}", "seeds"]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    by_metric = {name: figures.by_arm(name) for name in COLUMNS}
    base = by_metric["SR unseen"].get(BASELINE, {})
    for arm in arms:
        found = by_metric["SR unseen"].get(arm, {})
        if not found:
            continue
        paired = list(differences(base, found).values()) if arm != BASELINE else []
        gap = span(student_interval(paired), 100) if paired else ""
        cells = [cell(name, by_metric[name].get(arm, {})) for name in COLUMNS]
        lines.append(f"| {arm} | {' | '.join(cells)} | {gap} | {len(found)} |")
    for arm, by_seed in figures.by_arm(DIVERGED).items():
        lines.append(f"\n{arm} diverged with seed {', '.join(map(str, sorted(by_seed)))}.")
    return "\n".join(lines)


def caption(figures: Figures) -> str:
    """Everything that the figures depend on."""
    s = figures.setting
    return (
        f"MiniWorld, {s.steps} updates, {s.samples} instructions in unseen worlds; commit {s.commit}"
        f"{' (modified)' if s.dirty else ''}; {s.machine}, threads {s.threads}; {s.versions}\n"
        "points: seeds, diamonds: mean with its 95 % interval"
    )


def plot(figures: Figures, arms: Sequence[str], path: Path) -> None:
    """Write the picture: a panel per metric, an arm per row, a point per seed.

    Raises:
        RunError: when the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    module = require("matplotlib.figure", purpose="drawing the study")
    require("matplotlib.backends.backend_agg", purpose="drawing the study")
    figure = module.Figure(figsize=(9.0, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), COLUMNS[:2], strict=True):
        by_arm = figures.by_arm(metric)
        for place, arm in enumerate(arms):
            values = [100 * value for value in by_arm.get(arm, {}).values()]
            if not values:
                continue
            color = COLORS[place % len(COLORS)]
            axes.plot(values, [place - 0.12] * len(values), "o", color=color, markersize=4, alpha=0.6)
            found = student_interval(values)
            reach = None if math.isinf(found.high) else [found.high - found.mean]
            axes.errorbar([found.mean], [place + 0.12], xerr=reach, fmt="D", color=color, capsize=4)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_title(f"{metric}, %", fontsize=9, loc="left")
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    figure.supxlabel(caption(figures), fontsize=6)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    write_atomic(path, target.getvalue())
