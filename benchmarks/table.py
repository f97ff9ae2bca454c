"""The generated sections of the pages, each between its two marks, from the committed results files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.latent.targets import latent_section
from benchmarks.machine import BUSY_CORES, ROOT
from benchmarks.quantizer.discriminator import BARE
from benchmarks.quantizer.floor import GEMM
from benchmarks.quantizer.ours import OURS
from benchmarks.quantizer.problem import SHAPES, FeatureShape
from benchmarks.quantizer.targets import FAISS, LUCIDRAINS, RELEASED, overhead
from benchmarks.results import DIRECTORY, Row, median, peak, read_all
from benchmarks.studies import navigation_tasks, optimus, prevalent
from benchmarks.studies.fqgan import ARMS as GAN_ARMS
from benchmarks.studies.results import Figures, read
from benchmarks.studies.setting import BASELINE as NO_QUANTIZATION
from benchmarks.studies.summary import summary
from benchmarks.targets import TARGETS, cpu_targets
from benchmarks.verdict import Verdict

NOT_MEASURED = "not measured"
_MARK = re.compile(r"^<!-- (\w+):(begin|end) -->$", re.MULTILINE)


def _ms(value: float | None) -> str:
    return NOT_MEASURED if value is None else (f"{value:.0f}" if value >= 100 else f"{value:.3g}")


def _mib(value: int | None) -> str:
    return NOT_MEASURED if value is None else _ms(value / 2**20)


def _ratio(upper: float | None, lower: float | None) -> str:
    return "-" if upper is None or lower is None else f"{upper / lower:.1f}x"


def _cell(rows: Sequence[Row], case: str, shape: str, contender: str) -> str:
    """Return a time, or why there is none."""
    value = median(rows, case, shape, contender)
    if value is not None:
        return _ms(value)
    notes = [row.note for row in rows if (row.case, row.shape, row.contender) == (case, shape, contender)]
    return notes[0].split(":")[0] if notes and notes[0] else NOT_MEASURED


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def _share(rows: Sequence[Row], case: str, shape: str) -> str:
    for row in rows:
        if (row.case, row.shape, row.contender) == (case, shape, OURS) and row.floor_share is not None:
            return f"{100 * row.floor_share:.0f} %"
    return NOT_MEASURED


def _train_line(rows: Sequence[Row], shape: FeatureShape) -> list[str]:
    times = {name: median(rows, "train_step", shape.name, name) for name in (OURS, RELEASED, LUCIDRAINS)}
    peaks = [peak(rows, "train_step", shape.name, name) for name in times]
    return [
        shape.label,
        *(_cell(rows, "train_step", shape.name, name) for name in times),
        f"{_ratio(times[RELEASED], times[OURS])} / {_ratio(times[LUCIDRAINS], times[OURS])}",
        _share(rows, "train_step", shape.name),
        " / ".join(_mib(value) if value is not None else "-" for value in peaks),
    ]


_LOOKUP_PEERS = (FAISS, "torch.cdist", "chunked addmm, compiled", "scikit-learn")


def _lookup_line(rows: Sequence[Row], shape: FeatureShape) -> list[str]:
    mine = median(rows, "lookup", shape.name, OURS)
    return [
        shape.label,
        *(_cell(rows, "lookup", shape.name, name) for name in (OURS, *_LOOKUP_PEERS, GEMM)),
        _ratio(median(rows, "lookup", shape.name, FAISS), mine),
        f"{mine / gemm:.2f}" if mine and (gemm := median(rows, "lookup", shape.name, GEMM)) else "-",
    ]


def _overhead_lines(rows: Sequence[Row]) -> list[str]:
    here = [row for row in rows if row.case == "discriminator_overhead"]
    if not any(row.contender == BARE and row.median_ms is not None for row in here):
        return []
    parts = []
    for row in here:
        added = overhead(here, row.contender)
        if row.contender != BARE and added is not None:
            parts.append(f"{row.contender} {100 * added:+.1f} %")
    bare = median(here, "discriminator_overhead", here[0].shape, BARE)
    text = f"One optimizer step of {here[0].shape} takes {_ms(bare)} ms without a quantizer. With one: "
    return [text + ", ".join(parts) + ".", ""]


def _verdicts(found: Sequence[Verdict]) -> list[str]:
    return _markdown(
        ("target", "wanted", "found", "", "detail"),
        [(verdict.text, verdict.wanted, verdict.found, verdict.word, verdict.detail) for verdict in found],
    )


def _disturbance(rows: Sequence[Row]) -> list[str]:
    """Return a warning if other processes were busy during the measurements."""
    worst = max((row.other_cores or 0.0 for row in rows), default=0.0)
    if worst <= BUSY_CORES:
        return []
    return [f"Other processes kept up to {worst:.1f} cores busy meanwhile: read these times with care.", ""]


def _machine_section(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    commits = sorted({row.commit + (" (modified)" if row.dirty else "") for row in rows})
    source = f"`benchmarks/results/{first.machine}.csv`"
    text = [
        f"**{first.machine}**, {first.threads} threads, {first.dtype}, torch {first.torch}, "
        f"commit {', '.join(commits)}, {max(row.date for row in rows)}; every number is from {source}.",
        "",
        *_disturbance(rows),
        "Training step (forward, dictionary update, backward), median ms; "
        "extra memory comes on top of inputs and results; "
        "the floor includes torch's product, which writes N x K, so a fused kernel can exceed 100 %:",
        "",
        *_markdown(
            (
                "shape",
                OURS,
                "released",
                "lucidrains",
                "faster than released / lucidrains",
                "share of the floor",
                "extra MiB: ours / released / lucidrains",
            ),
            [_train_line(rows, shape) for shape in SHAPES],
        ),
        "",
        "Only the lookup, on contiguous rows, median ms:",
        "",
        *_markdown(
            (
                "shape",
                OURS,
                *_LOOKUP_PEERS,
                "fastest fp32 product",
                "faster than faiss",
                "time over the product",
            ),
            [_lookup_line(rows, shape) for shape in SHAPES],
        ),
        "",
        *_overhead_lines(rows),
        *latent_section(rows),
    ]
    return text


def _by_machine(rows: Sequence[Row], device: str) -> dict[tuple[str, int], list[Row]]:
    """Return (machine, threads) -> the float32 rows of a device, graph replays left out."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.device == device and row.dtype == "float32" and not row.clock_kind:
            found.setdefault((row.machine, row.threads), []).append(row)
    return dict(sorted(found.items()))


def render(rows: Sequence[Row]) -> str:
    """Return the long tables: what was measured on each machine, and the targets."""
    lines: list[str] = []
    devices: dict[str, Callable[[Sequence[Row]], list[Verdict]]] = TARGETS
    for device, judge in devices.items():
        title = "CPU" if device == "cpu" else "GPU"
        machines = _by_machine(rows, device)
        if not machines:
            lines += [
                f"### {title}",
                "",
                f"Every GPU number: {NOT_MEASURED}." if device == "cuda" else f"{NOT_MEASURED}.",
                "",
            ]
            lines += [*_verdicts(judge([])), ""]
        for mine in machines.values():
            lines += [f"### {title}", "", *_machine_section(mine), *_verdicts(judge(mine)), ""]
    return "\n".join(lines).strip() + "\n"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


class _Headline(NamedTuple):
    """A row of the README: the target it quotes, what was timed, and against what."""

    target: str
    timed: str
    peer: str


_HEADLINES = (
    _Headline(
        "training step, faster than the released layer",
        "training step of `FeatureQuantizer`",
        "the layer released with FQ-GAN",
    ),
    _Headline(
        "training step, faster than lucidrains",
        "training step of `FeatureQuantizer`",
        "vector-quantize-pytorch",
    ),
    _Headline(
        "generation with a latent, time over plain GPT-2, B 1 and 8",
        "cached decoding after `inject_latent`",
        "the same GPT-2 without a latent",
    ),
    _Headline(
        "pretraining, samples/s over a literal port",
        "pretraining step of PREVALENT",
        "a literal port of the released code",
    ),
)


def _worse(verdict: Verdict) -> float:
    """Return a key that is smallest for the worst figure; what was not measured comes last."""
    if verdict.value is None:
        return float("inf")
    return verdict.value if verdict.wanted.startswith(">=") else -verdict.value


def _speed_of(verdict: Verdict) -> str:
    if verdict.value is None:
        return NOT_MEASURED
    if verdict.wanted.startswith(">="):
        return f"{verdict.value:.1f} times as fast"
    return f"{100 * (verdict.value - 1):+.1f} % time"


def headlines(rows: Sequence[Row]) -> str:
    """Return the README's rows: each figure is that of the machine where it is worst."""
    found = {
        machine: {verdict.text: verdict for verdict in cpu_targets(mine)}
        for machine, mine in _by_machine(rows, "cpu").items()
    } or {("", 0): {verdict.text: verdict for verdict in cpu_targets([])}}
    lines = []
    for target, timed, peer in _HEADLINES:
        machine, threads = min(found, key=lambda name: _worse(found[name][target]))
        verdict = found[machine, threads][target]
        where = f"{machine}, {_threads(threads)}" if verdict.value is not None else ""
        lines.append((timed, peer, _speed_of(verdict), verdict.detail, where))
    gpu = "" if _by_machine(rows, "cuda") else f"\nOn a GPU: {NOT_MEASURED}.\n"
    return "\n".join(_markdown(("timed", "against", "result", "over", "machine"), lines)) + "\n" + gpu


def _studies(directory: Path, pattern: str, text: Callable[[Path], str]) -> str:
    """Return a text for each results file of a study."""
    parts = [f"{text(path)}\n" for path in sorted(directory.glob(pattern))]
    return "\n".join(parts) or "Not measured yet.\n"


def _rows_of(path: Path) -> str:
    return f"Rows: `benchmarks/results/{path.name}`"


def _gan_study(path: Path) -> str:
    text = summary(read(path), GAN_ARMS, baseline=NO_QUANTIZATION)
    return f"{text}\n\n{_rows_of(path)}; bold: the interval excludes 0."


def _arms_study(path: Path, *, table: Callable[[Figures, Sequence[str]], str], arms: Iterable[str]) -> str:
    """Return the table of the newest setting of a study, and where its rows are from."""
    rows = read(path)
    figures = Figures(rows, rows[-1].setting)
    setting = figures.setting
    where = f"Commit {setting.commit}; {setting.machine}, {_threads(setting.threads)}"
    return f"{table(figures, tuple(arms))}\n\n{where}. {_rows_of(path)}."


def _task_study(path: Path) -> str:
    return f"{navigation_tasks.summary(read(path))}\n\n{_rows_of(path)}."


#: Name of a section, as in its marks -> its text from a folder of results.
SECTIONS: dict[str, Callable[[Path], str]] = {
    "speed": lambda directory: headlines(read_all(directory)),
    "bench": lambda directory: render(read_all(directory)),
    "gans": partial(_studies, pattern="study_fqgan-*.csv", text=_gan_study),
    "search": partial(_studies, pattern="study_fqgan_search-*.csv", text=_gan_study),
    **{
        case: partial(
            _studies,
            pattern=f"study_optimus-{case}-*.csv",
            text=partial(_arms_study, table=optimus.table, arms=optimus.arms_of(case)),
        )
        for case in ("grammar", "captions", "injection")
    },
    **{
        name: partial(
            _studies,
            pattern=f"{stem}-*.csv",
            text=partial(_arms_study, table=prevalent.table, arms=prevalent.ARMS),
        )
        for name, stem in {"navigation": "study_prevalent", "navigation_600": "study_prevalent_600"}.items()
    },
    "tasks": partial(_studies, pattern="study_navigation_tasks-*.csv", text=_task_study),
}
#: Each section stands on one page.
PAGES = {
    ROOT / "README.md": ("speed",),
    ROOT / "docs" / "results.md": tuple(name for name in SECTIONS if name != "speed"),
}


def update(page: Path, directory: Path = DIRECTORY, *, check: bool = False) -> bool:
    """Rewrite the sections between the marks of a page; with `check` only tell whether they would change.

    Args:
        page: a file with lines `<!-- NAME:begin -->` and `<!-- NAME:end -->` of `SECTIONS`. A page of `PAGES`
            must have its own.
        directory: the results files.
        check: write nothing.

    Returns:
        Whether the text was (with `check`: is) out of date.

    Raises:
        ValueError: a section is missing, has no end, or stands there twice.
    """
    text = page.read_text(encoding="utf-8")
    marks = [mark for mark in _MARK.finditer(text) if mark[1] in SECTIONS]
    begins, ends = marks[::2], marks[1::2]
    names = [mark[1] for mark in begins]
    wanted = PAGES.get(page.resolve(), ())
    paired = [(mark[1], mark[2]) for mark in marks] == [(n, w) for n in names for w in ("begin", "end")]
    if not paired or len(set(names)) != len(names) or not set(names) >= set(wanted) or not names:
        raise ValueError(
            f"{page} needs each of its sections ({', '.join(wanted or SECTIONS)}) once, between a line "
            "<!-- NAME:begin --> and after it a line <!-- NAME:end -->"
        )
    fresh, done = "", 0
    for begin, end in zip(begins, ends, strict=True):
        fresh += f"{text[done : begin.end()]}\n{SECTIONS[begin[1]](directory)}"
        done = end.start()
    fresh += text[done:]
    if fresh == text:
        return False
    if not check:
        page.write_text(fresh, encoding="utf-8")
    return True
