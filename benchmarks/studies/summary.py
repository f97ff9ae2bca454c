"""All settings of a GAN study in one table of markdown, for the pages."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.machine import BUSY_CORES
from benchmarks.studies.report import busy_cores, compare
from benchmarks.studies.results import ACCURACY, FLOOR, STEP_TIME, Figures, Row, Setting
from benchmarks.studies.statistics import Interval

_HEAD = (
    "images and options", "steps", "arm", "seeds", "Frechet distance", "minus {baseline} (95 % interval)",
    "class accuracy", "time of a step", "codes in use",
)  # fmt: skip


def _difference(found: Interval | None) -> str:
    """Return mean and interval, bold where the interval leaves 0 out."""
    if found is None or found.spread_is_unknown:
        return "" if found is None else f"{found.mean:+.2f}"
    text = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    return text if found.includes_zero else f"**{text}**"


def _time(times: Mapping[str, Mapping[int, float]] | None, arm: str, baseline: str) -> str:
    if times is None:
        return "disturbed"
    found = compare(STEP_TIME, times, arm, baseline) if arm in times else None
    return "" if found is None else f"{100 * found.mean:+.1f} %"


def _mean(by_seed: Mapping[int, float] | None, form: str) -> str:
    return "–" if not by_seed else format(statistics.fmean(by_seed.values()), form)


def _usage(figures: Figures, arm: str) -> str:
    """Return the mean share of the codes in use, over layers and seeds."""
    found = [
        value
        for metric in figures.values
        if metric.startswith("usage/")
        for value in figures.by_arm(metric).get(arm, {}).values()
    ]
    return f"{statistics.fmean(found):.0%}" if found else ""


def _without_fq(options: str) -> str:
    """Return options without those that act only on quantization."""
    acting = ("fq_", "num_codes=", "commitment=", "decay=")
    return " ".join(option for option in options.split() if not option.startswith(acting))


def _with_baseline(
    rows: Sequence[Row], setting: Setting, metric: str, baseline: str
) -> dict[str, dict[int, float]]:
    """Return arm -> seed -> value.

    A setting that has no run of the baseline borrows those of the setting without its options of
    quantization, which do nothing there.
    """
    by_arm = Figures(rows, setting).by_arm(metric)
    if baseline in by_arm:
        return by_arm
    plain = dataclasses.replace(setting, options=_without_fq(setting.options))
    return {**by_arm, baseline: Figures(rows, plain).by_arm(metric).get(baseline, {})}


def _lines(rows: Sequence[Row], setting: Setting, arms: Sequence[str], baseline: str) -> list[str]:
    """Return the table rows of one setting."""
    figures = Figures(rows, setting)
    ruler = figures.fid or ""
    floors = [value for by_seed in figures.by_arm(FLOOR).values() for value in by_seed.values()]
    floor = f", floor {floors[0]:.2f}" if floors else ""
    name = f"{setting.title}; {ruler}, n {setting.samples}{floor}"
    distances = _with_baseline(rows, setting, ruler, baseline)
    # Times say nothing where other processes ran beside.
    times = None if busy_cores(figures) > BUSY_CORES else _with_baseline(rows, setting, STEP_TIME, baseline)
    lines: list[str] = []
    for arm in [arm for arm in arms if arm in figures.by_arm(ruler)]:
        cells = [
            *(("", "") if lines else (name, str(setting.steps))),
            arm,
            str(len(distances[arm])),
            _mean(distances[arm], ".2f"),
            _difference(compare(ruler, distances, arm, baseline)),
            _mean(figures.by_arm(ACCURACY).get(arm), ".1%"),
            _time(times, arm, baseline),
            _usage(figures, arm),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(rows: Sequence[Row], arms: Sequence[str], *, baseline: str) -> str:
    """Return every setting of a results file, arm by arm, with differences paired by seed.

    Args:
        rows: of a results file.
        arms: in their order.
        baseline: the arm that is subtracted.
    """
    head = [name.format(baseline=baseline) for name in _HEAD]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    settings = list(dict.fromkeys(row.setting for row in rows))
    for setting in settings:
        lines += _lines(rows, setting, arms, baseline)
    commits = ", ".join(dict.fromkeys(setting.commit for setting in settings))
    where = ", ".join(dict.fromkeys(f"{s.machine}, threads: {s.threads}" for s in settings))
    return "\n".join([*lines, "", f"Commit {commits}; {where}; {settings[0].versions}."])
