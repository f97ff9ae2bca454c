"""The table and the picture of the Optimus study."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study_results import DIVERGED, Figures
from benchmarks.study_statistics import student_interval
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.extras import require
from fq_toolkit.training.plots import COLORS

COLUMNS = (
    "analogies right", "factor changed", "others kept", "PPL per BPE token", "PPL per word", "-ELBO", "KL",
    "MI", "AU", "reconstruction", "reconstruction from another latent",
)  # fmt: skip
_PANELS = ("PPL per word", "KL", "MI", "AU")
_ANALOGIES = "analogies right"


def cell(by_seed: Mapping[int, float]) -> str:
    """Mean over seeds and, with several, their standard deviation."""
    if not by_seed:
        return "–"
    found = student_interval(list(by_seed.values()))
    return f"{found.mean:.2f}" + (f" ± {found.sd:.2f}" if found.seeds > 1 else "")


def table(figures: Figures, arms: Sequence[str]) -> str:
    """Arms by metrics as markdown: means over seeds, standard deviations, and the number of seeds."""
    by_metric = {name: figures.by_arm(name) for name in COLUMNS if figures.by_arm(name)}
    lines = [f"| | {' | '.join(by_metric)} | seeds |", f"|---|{'---|' * (len(by_metric) + 1)}"]
    for arm in arms:
        seeds = len(figures.by_arm("PPL per word").get(arm, {}))
        if seeds:
            cells = [cell(by_arm.get(arm, {})) for by_arm in by_metric.values()]
            lines.append(f"| {arm} | {' | '.join(cells)} | {seeds} |")
    for arm, by_seed in figures.by_arm(DIVERGED).items():
        lines.append(f"\n{arm} diverged with seed {', '.join(map(str, sorted(by_seed)))}.")
    return "\n".join(lines)


def caption(figures: Figures) -> str:
    """Everything that the figures depend on."""
    s = figures.setting
    return (
        f"{s.title}, {s.steps} steps, {s.samples} held-out sentences; commit {s.commit}"
        f"{' (modified)' if s.dirty else ''}; {s.machine}, threads {s.threads}\n{s.versions}; "
        "points: seeds, bars: means"
    )


def plot(figures: Figures, arms: Sequence[str], path: Path) -> None:
    """Write the picture: a panel per metric, an arm per row, a point per seed.

    Raises:
        RunError: when the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    module = require("matplotlib.figure", purpose="drawing the study")
    require("matplotlib.backends.backend_agg", purpose="drawing the study")
    panels = _PANELS + (_ANALOGIES,) * bool(figures.by_arm(_ANALOGIES))
    figure = module.Figure(figsize=(11.0, 1.2 + 0.35 * len(arms)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        by_arm = figures.by_arm(metric)
        for place, arm in enumerate(arms):
            values = list(by_arm.get(arm, {}).values())
            if values:
                axes.barh(place, sum(values) / len(values), color=COLORS[0], alpha=0.35)
                axes.plot(values, [place] * len(values), "o", color=COLORS[0], markersize=4)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_title(metric, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    figure.supxlabel(caption(figures), fontsize=6)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150)
    write_atomic(path, target.getvalue())
