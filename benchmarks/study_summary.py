"""All settings of a GAN study in one table of markdown, for the pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.study_report import compare
from benchmarks.study_results import ACCURACY, FLOOR, STEP_TIME, Figures, Row
from benchmarks.study_statistics import Interval

_HEAD = (
    "images and options", "steps", "arm", "seeds", "Frechet distance", "minus {baseline} (95 % interval)",
    "class accuracy", "time of a step", "codes in use",
)  # fmt: skip


def _difference(found: Interval | None) -> str:
    """Mean and interval; bold where the interval leaves 0 out."""
    if found is None or found.spread_is_unknown:
        return "" if found is None else f"{found.mean:+.2f}"
    text = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    return text if found.includes_zero else f"**{text}**"


def _time(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.mean:+.1f} %"


def _mean(by_seed: Mapping[int, float] | None, form: str) -> str:
    return "–" if not by_seed else format(statistics.fmean(by_seed.values()), form)


def _usage(figures: Figures, arm: str) -> str:
    """Mean share of the codes in use, over layers and seeds."""
    found = [
        value
        for metric in figures.values
        if metric.startswith("usage/")
        for value in figures.by_arm(metric).get(arm, {}).values()
    ]
    return f"{statistics.fmean(found):.0%}" if found else ""


def _lines(figures: Figures, arms: Sequence[str], baseline: str) -> list[str]:
    """The rows of one setting."""
    setting, ruler = figures.setting, figures.fid
    distances = figures.by_arm(ruler)
    floors = [value for by_seed in figures.by_arm(FLOOR).values() for value in by_seed.values()]
    floor = f", floor {floors[0]:.2f}" if floors else ""
    name = f"{setting.title}; {ruler}, n {setting.samples}{floor}"
    lines: list[str] = []
    for arm in [arm for arm in arms if arm in distances]:
        cells = [
            *(("", "") if lines else (name, str(setting.steps))),
            arm,
            str(len(distances[arm])),
            _mean(distances[arm], ".2f"),
            _difference(compare(ruler or "", distances, arm, baseline)),
            _mean(figures.by_arm(ACCURACY).get(arm), ".1%"),
            _time(compare(STEP_TIME, figures.by_arm(STEP_TIME), arm, baseline)),
            _usage(figures, arm),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(rows: Sequence[Row], arms: Sequence[str], *, baseline: str) -> str:
    """Every setting of a results file, arm by arm, with differences paired by seed.

    Args:
        rows: of a results file.
        arms: in their order.
        baseline: the arm that is subtracted.
    """
    head = [name.format(baseline=baseline) for name in _HEAD]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    settings = list(dict.fromkeys(row.setting for row in rows))
    for setting in settings:
        lines += _lines(Figures(rows, setting), arms, baseline)
    commits = ", ".join(dict.fromkeys(setting.commit for setting in settings))
    where = ", ".join(dict.fromkeys(f"{s.machine}, threads: {s.threads}" for s in settings))
    return "\n".join([*lines, "", f"Commit {commits}; {where}; {settings[0].versions}."])
