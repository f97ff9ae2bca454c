"""The table and the picture of the navigation study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.panels import Panel, diverged, draw
from benchmarks.studies.results import Figures
from benchmarks.studies.statistics import Interval, differences, student_interval

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
    lines += diverged(figures)
    return "\n".join(lines)


def plot(figures: Figures, arms: Sequence[str], path: Path) -> None:
    """Write the picture.

    Raises:
        RunError: when the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    panels = [Panel(metric, 100) for metric in COLUMNS[:2]]
    draw(figures, arms, panels, path, samples="instructions in unseen worlds")
