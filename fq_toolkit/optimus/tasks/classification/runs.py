"""Classification from the latents of a run: the curve, its table, its files."""

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fq_toolkit.optimus.data.corpus import describe_skipped
from fq_toolkit.optimus.data.labels import LabelledCorpus
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.classification.classification import (
    Result,
    Summary,
    low_resource_curve,
    paired_differences,
    summarize,
    untrained,
)
from fq_toolkit.optimus.tasks.vae.runs import load_model
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.reporting.plots import COLORS
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import provenance

VAE, UNTRAINED = "VAE", "untrained encoder"


class Classification(NamedTuple):
    """A learning curve; its ``str`` is what the command line prints.

    results: one for each arm, number of labels and seed.
    names: of the labels.
    test_sentences: number of test sentences.
    majority: accuracy of always predicting the most frequent label.
    seconds: time that it took.
    """

    results: list[Result]
    names: list[str]
    test_sentences: int
    majority: float
    seconds: float

    def __str__(self) -> str:
        summaries = summarize(self.results)
        sizes = list(dict.fromkeys(row.per_class for row in summaries))
        arms = list(dict.fromkeys(row.arm for row in summaries))
        cell = {(row.arm, row.per_class): row for row in summaries}
        seeds = summaries[0].seeds
        lines = [
            f"accuracy in % on {self.test_sentences:,} sentences ({' / '.join(self.names)}; "
            f"always the most frequent label: {100 * self.majority:.1f}), mean over {seeds} seed(s) "
            "and 95 % interval",
            "",
            f"| labels per class | {' | '.join(map(str, sizes))} |",
            f"|{'---|' * (1 + len(sizes))}",
        ]
        lines += [f"| {arm} | {' | '.join(_percent(cell[arm, n]) for n in sizes)} |" for arm in arms]
        for other in arms[1:]:
            if other.endswith("fine-tuned") == arms[0].endswith("fine-tuned"):
                points = map(_difference, paired_differences(self.results, arms[0], other))
                lines += ["", f"{arms[0]} - {other}, points: {', '.join(points)}"]
        return "\n".join(lines)


def classify_run(
    run: Path,
    corpus: LabelledCorpus,
    *,
    against: Sequence[Path] = (),
    per_class: Sequence[int],
    seeds: int,
    finetune_steps: int,
    test_sentences: int,
    checkpoint: Which | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Classification:
    """Measure how many labels classifiers need on the latents of a run and on plain sentence vectors.

    The arms are the latents of the run, the sentence vectors of its encoder, those of the same encoder with
    random weights, and those of other runs; with ``finetune_steps`` also each of them fine-tuned.

    Args:
        run: of a sentence VAE.
        corpus: labelled sentences.
        against: other runs, an autoencoder's for example.
        per_class: labels per class.
        seeds: repetitions.
        finetune_steps: updates of each fine-tuning; 0 skips it.
        test_sentences: number of test sentences, from the first.
        checkpoint: of ``run``; by default its model at the end.
        report: called with what is being done.

    Raises:
        ConfigError: too few sentences, or the same name for two runs.
    """
    started = time.monotonic()
    if seeds < 1 or test_sentences < 1 or finetune_steps < 0 or not per_class or min(per_class) < 1:
        raise ConfigError(
            f"seeds is {seeds}, test_sentences {test_sentences}, finetune_steps {finetune_steps}, per_class "
            f"{tuple(per_class)}; expected at least 1, 1, 0 and numbers of at least 1"
        )
    models: dict[str, SentenceVAE] = {VAE: load_model(run, checkpoint=checkpoint)}
    models[UNTRAINED] = untrained(models[VAE])
    for path in against:
        if path.name in models:
            raise ConfigError(f"two runs are called {path.name!r}; rename a folder")
        models[path.name] = load_model(path)
    test = corpus.valid.take(range(min(test_sentences, len(corpus.valid.texts))))
    seed_everything(0)  # nothing below may depend on what was drawn before
    results = low_resource_curve(
        models,
        corpus.train,
        test,
        per_class=per_class,
        seeds=range(seeds),
        finetune_steps=finetune_steps,
        report=report,
    )
    majority = float(np.bincount(test.labels).max() / len(test.labels))
    seconds = time.monotonic() - started
    return Classification(results, corpus.names, len(test.texts), majority, seconds)


def write_classification(
    curve: Classification, corpus: LabelledCorpus, target: Path, *, options: dict[str, Any]
) -> list[Path]:
    """Write TARGET.json with everything and TARGET.png with the curves; return the files."""
    record = {
        **options,
        "labels": curve.names,
        "test_sentences": curve.test_sentences,
        "majority": curve.majority,
        "skipped": describe_skipped(corpus.skipped),
        "seconds": round(curve.seconds, 1),
        "summaries": [_plain(row) for row in summarize(curve.results)],
        "results": [row._asdict() for row in curve.results],
        **provenance(),
    }
    files = [target.with_name(target.name + ending) for ending in (".json", ".png")]
    write_atomic(files[0], (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(files[1], _picture(curve))
    return files


def _plain(row: Summary) -> dict[str, Any]:
    """Return a summary for JSON, which has no NaN."""
    values = row._asdict()
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _percent(row: Summary) -> str:
    reach = "" if math.isnan(row.low) else f" ± {100 * (row.high - row.mean):.1f}"
    return f"{100 * row.mean:.1f}{reach}"


def _difference(row: Summary) -> str:
    span = "" if math.isnan(row.low) else f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{row.per_class} labels {100 * row.mean:+.1f}{span}"


def _picture(curve: Classification) -> bytes:
    """Draw the curves with their intervals; return a PNG."""
    figures = require("matplotlib.figure", purpose="drawing curves")
    require("matplotlib.backends.backend_agg", purpose="drawing curves")
    figure = figures.Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    summaries = summarize(curve.results)
    for number, arm in enumerate(dict.fromkeys(row.arm for row in summaries)):
        rows = [row for row in summaries if row.arm == arm]
        reach = [0.0 if math.isnan(row.low) else 100 * (row.high - row.mean) for row in rows]
        axes.errorbar(
            [
                row.per_class * 1.03**number for row in rows
            ],  # shifted a little, so that error bars do not overlap
            [100 * row.mean for row in rows],
            yerr=reach,
            color=COLORS[number % len(COLORS)],
            linestyle="--" if arm.endswith("fine-tuned") else "-",
            marker="o",
            markersize=3,
            linewidth=1.2,
            capsize=2,
            label=arm,
        )
    axes.axhline(100 * curve.majority, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("labels per class", fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
