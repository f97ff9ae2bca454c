"""The targets of latent injection, and its part of the results page."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.latent.generate import INJECTED, ORIGINAL, PLAIN
from benchmarks.latent.problem import (
    GENERATE,
    GENERATION_SHAPES,
    MEMORY_SHAPE,
    RELEASED_SHAPE,
    TRAIN,
    TRAINING_SHAPES,
    TextShape,
)
from benchmarks.results import Row, median, over_base, peak
from benchmarks.verdict import Verdict

#: For a few tensors of one number each, which are not what the target is about.
_SCALAR_BYTES = 1024


def _ratio(rows: Sequence[Row], case: str, shape: TextShape, above: str, below: str) -> float | None:
    upper, lower = median(rows, case, shape.name, above), median(rows, case, shape.name, below)
    return None if upper is None or not lower else upper / lower


def _worst(text: str, limit: float, values: dict[str, float | None]) -> Verdict:
    """Judge whether something takes at most ``limit`` times as long on every shape."""
    found = {name: value for name, value in values.items() if value is not None}
    wanted = f"<= {limit:g}x"
    if len(found) < len(values):
        return Verdict(text, wanted, None, None)
    worst = max(found, key=lambda name: found[name])
    return Verdict(
        text, wanted, found[worst], found[worst] <= limit, f"worst of {len(found)} shapes ({worst})"
    )


def _times(rows: Sequence[Row], text: str, limit: float, shape: TextShape) -> Verdict:
    """Judge whether we are at least ``limit`` times as fast as the original's loop."""
    value = _ratio(rows, GENERATE, shape, ORIGINAL, INJECTED)
    return Verdict(text, f">= {limit:g}x", value, None if value is None else value >= limit, shape.label)


def _memory(rows: Sequence[Row], case: str, shape: TextShape, adapters: int) -> Verdict:
    """Judge the memory beside that of plain, ``adapters`` arrays of the adapter's size, and a slot."""
    mine, plain = (peak(rows, case, shape.name, name) for name in (INJECTED, PLAIN))
    what = "training" if adapters else "generation"
    text = f"{what}, peak memory over plain + adapter + one slot, {shape.label}"
    if mine is None or not plain:
        return Verdict(text, "<= 1x", None, None)
    allowed = plain + adapters * shape.adapter_bytes + shape.slot_bytes
    detail = f"{mine / 2**20:.2f} MiB of tensors against {plain / 2**20:.2f} MiB of plain"
    return Verdict(text, "<= 1x", mine / allowed, mine <= allowed + _SCALAR_BYTES, detail)


def latent_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdicts over the rows of one device."""
    judged = [shape for shape in GENERATION_SHAPES if shape != RELEASED_SHAPE]
    by_size = {(shape.batch, shape.length): shape for shape in judged}
    small = [shape for shape in judged if shape.batch in (1, 8)]
    return [
        _worst(
            "generation with a latent, time over plain GPT-2, B 1 and 8",
            1.03,
            {shape.label: over_base(rows, GENERATE, shape.name, INJECTED) for shape in small},
        ),
        _times(rows, "generation, faster than the original loop", 5, by_size[1, 128]),
        _times(rows, "generation, faster than the original loop in aggregate", 20, by_size[32, 128]),
        _worst(
            "training step with a latent, time over plain GPT-2",
            1.05,
            {shape.label: over_base(rows, TRAIN, shape.name, INJECTED) for shape in TRAINING_SHAPES},
        ),
        _memory(rows, GENERATE, MEMORY_SHAPE, adapters=0),
        # the adapter's gradient and its two moments; the adapter itself was there before the step
        *(_memory(rows, TRAIN, shape, adapters=3) for shape in TRAINING_SHAPES),
    ]


def _tokens(shape: TextShape, milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{1e3 * shape.rows / milliseconds:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * (value - 1):+.1f} %"


def latent_section(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the results page about a machine."""
    header = (
        "batch, tokens",
        "inject_latent",
        "plain GPT-2",
        "original loop",
        "time over plain",
        "over the loop",
    )
    lines = []
    for shape in GENERATION_SHAPES:
        times = [median(rows, GENERATE, shape.name, name) for name in (INJECTED, PLAIN, ORIGINAL)]
        faster = _ratio(rows, GENERATE, shape, ORIGINAL, INJECTED)
        cells = [
            shape.label,
            *(_tokens(shape, time) for time in times),
            _share(over_base(rows, GENERATE, shape.name, INJECTED)),
            "-" if faster is None else f"{faster:.1f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shape = GENERATION_SHAPES[0]
    return [
        f"Greedy generation of T tokens for B latents by a GPT-2 from scratch ({shape.layers} layers of "
        f"width {shape.width}, vocabulary {shape.vocabulary:,}; the last row has the released size, "
        f"vocabulary {RELEASED_SHAPE.vocabulary:,}), tokens per second. The original's loop processes "
        "one text after another and recomputes the prefix for each token:",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *lines,
        "",
        _training_sentence(rows),
        "",
    ]


def _training_sentence(rows: Sequence[Row]) -> str:
    parts = []
    for shape in TRAINING_SHAPES:
        plain = median(rows, TRAIN, shape.name, PLAIN)
        added = _share(over_base(rows, TRAIN, shape.name, INJECTED))
        found = "not measured" if plain is None else f"{plain:.0f} ms without a latent, {added} with one"
        parts.append(f"{shape.label}: {found}")
    return f"A training step: {'; '.join(parts)}."
