"""How the dictionaries of a model are doing: a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fq_toolkit.layers.quantizer.commitment import quantizers

_HEADER = ("layer", "shape", "K", "used", "perplexity", "dead", "restarted", "nonfinite", "loss")


@dataclass(frozen=True)
class CodebookRow:
    """One quantizer of a report.

    Attributes:
        layer: its name in the model.
        shape: shape of its last features, None before any.
        num_codes: K.
        used: share of the codes that the data uses by the moving counts, in [0, 1].
        perplexity: of the moving counts.
        dead: codes whose moving count is below 0.01, or below the threshold of ``revive``.
        restarted: codes that restarted at the last update.
        nonfinite: rows skipped so far because they held NaN or Inf.
        loss: mean commitment loss of the last forward; NaN before any.
        counts: the moving counts of what the data chose, ``(K,)``, on the CPU.
    """

    layer: str
    shape: tuple[int, ...] | None
    num_codes: int
    used: float
    perplexity: float
    dead: int
    restarted: int
    nonfinite: int
    loss: float
    counts: Tensor

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        shape = "-" if self.shape is None else " x ".join(map(str, self.shape))
        loss = "-" if math.isnan(self.loss) else f"{self.loss:.4g}"
        used, perplexity = f"{100 * self.used:.0f} %", f"{self.perplexity:.1f}"
        numbers = (str(self.dead), str(self.restarted), str(self.nonfinite))
        return (self.layer, shape, str(self.num_codes), used, perplexity, *numbers, loss)


@dataclass(frozen=True)
class CodebookReport:
    """What `codebook_report` returns; ``print`` shows it as a table.

    Attributes:
        rows: one per quantizer, in the order of the model.
    """

    rows: tuple[CodebookRow, ...]

    def __str__(self) -> str:
        return format_table(_HEADER, [row.cells() for row in self.rows])

    def plot(self, path: str | Path) -> Path:
        """Draw the moving counts of every dictionary, sorted: a flat curve is an evenly used dictionary.

        Args:
            path: image file to write; the ending chooses the format.

        Returns:
            The path.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except Exception as error:  # a broken installation fails in many ways
            raise ImportError(
                'CodebookReport.plot needs matplotlib: pip install "fq-toolkit[train]"'
            ) from error
        figure = Figure(figsize=(6, 1 + 1.8 * len(self.rows)), layout="constrained")
        axes = figure.subplots(len(self.rows), 1, squeeze=False)[:, 0]
        for axis, row in zip(axes, self.rows, strict=True):
            counts = row.counts.sort(descending=True).values.clamp(min=1e-6).numpy()
            axis.plot(range(1, len(counts) + 1), counts, drawstyle="steps-mid")
            axis.set(yscale="log", ylabel="moving count")
            axis.set_title(
                f"{row.layer}: perplexity {row.perplexity:.1f} of {row.num_codes}, {row.dead} dead"
            )
        axes[-1].set_xlabel("code, by count")
        figure.savefig(path)
        return Path(path)


def codebook_report(model: nn.Module) -> CodebookReport:
    """Report on every quantizer of a model. Waits for the device.

    Args:
        model: any module that contains `FeatureQuantizer` layers.

    Returns:
        A report to print, to plot, or to read row by row.

    Raises:
        ValueError: the model holds no quantizer, or one on the meta device.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer, codebook_report
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), FeatureQuantizer(4, 8))
        >>> _ = model(torch.arange(48.0).view(16, 3))
        >>> codebook_report(model).rows[0].used
        1.0
    """
    rows = []
    for name, layer in quantizers(model):
        if layer.codebook.is_meta:
            raise ValueError(
                f"{name or type(layer).__name__} is on the meta device: it has no values to report"
            )
        loss = layer.last_loss()
        rows.append(
            CodebookRow(
                layer=name or type(layer).__name__,
                shape=layer.host.shape,
                num_codes=layer.num_codes,
                used=layer.usage(),
                perplexity=layer.perplexity(),
                dead=layer.dead_codes(),
                restarted=layer.restarts(),
                nonfinite=int(layer.nonfinite_rows),
                loss=math.nan if loss is None else loss,
                counts=layer.data_counts().detach().cpu().clone(),
            )
        )
    if not rows:
        raise ValueError(f"{type(model).__name__} contains no FeatureQuantizer to report on")
    return CodebookReport(tuple(rows))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain-text table: the first column flush left, the others flush right."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = []
    for row in table:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
