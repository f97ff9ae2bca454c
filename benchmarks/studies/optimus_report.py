"""The table and the picture of the Optimus study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.panels import Panel, diverged, draw
from benchmarks.studies.results import Figures
from benchmarks.studies.statistics import student_interval

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
    lines += diverged(figures)
    return "\n".join(lines)


def plot(figures: Figures, arms: Sequence[str], path: Path) -> None:
    """Write the picture.

    Raises:
        RunError: when the file cannot be written.
        MissingExtraError: without matplotlib.
    """
    metrics = _PANELS + (_ANALOGIES,) * bool(figures.by_arm(_ANALOGIES))
    draw(figures, arms, [Panel(metric) for metric in metrics], path, samples="held-out sentences")
