"""What a study says, in a table and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from benchmarks import machine
from benchmarks.studies.results import ACCURACY, DIVERGED, FLOOR, OTHERS, STEP_TIME, Figures
from benchmarks.studies.statistics import Interval, differences, overhead, student_interval

_HIDDEN = (FLOOR, OTHERS, DIVERGED)


def _span(found: Interval, percent: bool) -> str:
    if found.spread_is_unknown:
        return "needs 2 seeds" if found.seeds < 2 else "all equal"
    low, high = (f"{100 * bound:+.1f} %" if percent else f"{bound:+.3g}" for bound in (found.low, found.high))
    return f"{low} to {high}"


def compare(
    metric: str, by_arm: Mapping[str, Mapping[int, float]], arm: str, baseline: str
) -> Interval | None:
    """Return the paired difference to the baseline, for step times as a share of it; None without pairs."""
    if arm == baseline or baseline not in by_arm:
        return None
    if metric == STEP_TIME:
        return overhead(by_arm[baseline], by_arm[arm])
    paired = differences(by_arm[baseline], by_arm[arm])
    return student_interval(list(paired.values())) if paired else None


def table(figures: Figures, *, baseline: str) -> Table:
    """Return metric by arm: seeds, mean, standard deviation, difference to the baseline, its interval."""
    setting = figures.setting
    floors = [value for by_seed in figures.by_arm(FLOOR).values() for value in by_seed.values()]
    floor = f", real-vs-real floor {floors[0]:.2f}" if floors else ""
    title = escape(
        f"{setting.title}, {setting.steps} steps, n={setting.samples} samples{floor}\n"
        f"commit {setting.commit}{' (modified)' if setting.dirty else ''}, {setting.machine}, "
        f"threads {setting.threads}"
    )
    shown = Table(title=title, title_justify="left", header_style="bold")
    shown.add_column("metric")
    shown.add_column("arm")
    for name in ("seeds", "mean", "sd", f"minus {baseline}", "95 % interval"):
        shown.add_column(name, justify="right")
    first = (figures.fid, ACCURACY, STEP_TIME)
    rest = sorted(name for name in figures.values if name not in (*first, *_HIDDEN))
    for metric in [name for name in (*first, *rest) if name in figures.values]:
        by_arm = figures.by_arm(metric)
        for place, (arm, by_seed) in enumerate(by_arm.items()):
            alone = student_interval(list(by_seed.values()))
            paired = compare(metric, by_arm, arm, baseline)
            percent = metric == STEP_TIME
            mean = (
                "" if paired is None else f"{100 * paired.mean:+.1f} %" if percent else f"{paired.mean:+.3g}"
            )
            shown.add_row(
                "" if place else escape(metric),
                arm,
                str(alone.seeds),
                f"{alone.mean:.4g}",
                "" if math.isnan(alone.sd) else f"{alone.sd:.3g}",
                mean,
                "" if paired is None else _span(paired, percent),
                end_section=place == len(by_arm) - 1,
            )
    return shown


def busy_cores(figures: Figures) -> float:
    """Return how many cores other processes kept busy beside the most disturbed run."""
    others = figures.by_arm(OTHERS)
    return max((value for by_seed in others.values() for value in by_seed.values()), default=0.0)


def verdict(metric: str, arm: str, baseline: str, found: Interval, *, lower_is_better: bool) -> str:
    """Return one difference as a sentence that claims no more than its interval."""
    start = f"{metric}, {arm} minus {baseline}: {found.mean:+.3g}"
    if found.seeds < 2:
        return f"{start} with one seed, which shows nothing: an interval needs at least 2 seeds."
    if found.spread_is_unknown:
        meaning = "this shows no difference" if found.includes_zero else "without a spread, no interval"
        return f"{start} with each of {found.seeds} seeds: {meaning}."
    start += f", 95 % interval {_span(found, False)}, {found.seeds} seeds paired."
    if found.includes_zero:
        return f"{start} The interval includes 0: this shows no difference."
    better = (found.mean < 0) == lower_is_better
    return f"{start} The interval excludes 0: {arm} is {'better' if better else 'worse'} here."


def verdicts(figures: Figures, *, baseline: str) -> list[str]:
    """Return the sentences: quality of every arm against the baseline, then what limits them."""
    said = []
    for metric, lower_is_better in ((figures.fid, True), (ACCURACY, False)):
        by_arm = figures.by_arm(metric)
        for arm in by_arm:
            found = compare(metric or "", by_arm, arm, baseline)
            if found is not None:
                said.append(verdict(metric or "", arm, baseline, found, lower_is_better=lower_is_better))
    if figures.fid and baseline not in figures.by_arm(figures.fid):
        said.append(f"There is no run of {baseline} yet, so nothing is compared.")
    for arm, by_seed in figures.by_arm(DIVERGED).items():
        seeds = ", ".join(map(str, sorted(by_seed)))
        said.append(
            f"{arm} diverged with seed {seeds}: such runs have no figures; the means are over the others and "
            "look better than the arm is."
        )
    if (others := busy_cores(figures)) > machine.BUSY_CORES:
        said.append(
            f"Other processes kept up to {others:.1f} cores busy: the step times are disturbed, the "
            "other figures are not."
        )
    return said
