"""What an optimizer step of the pretraining has to multiply, ours and the port's, and the gain that allows.

``python -m benchmarks.pretraining.limits`` prints a table; nothing is timed. Products are multiplications
with addition in matrix products, forward and backward. The optimizer, norms, losses and dropout are left out,
so the ratio of products is what the gain comes near to where products take the time, not an exact bound.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from benchmarks.pretraining.problem import ACTIONS, LENGTH, SHAPES, VIEWS, StepProblem
from fq_toolkit.prevalent import PrevalentConfig

# A product with weights is made three times: forward, for the weights' gradient and for the inputs'.
_FORWARD, _NO_INPUTS, _ALL = 1, 2, 3


class Products(NamedTuple):
    """Products of one step, by part of the model."""

    text: int
    views: int
    cross: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Rows(NamedTuple):
    """How much of a batch is computed.

    texts: instructions.
    tokens: rows of the text stream.
    longest: positions of a text that attention sees.
    read: rows of the text stream after the last layer's self-attention.
    most_read: the most of them in a text.
    words: rows that are projected to the vocabulary.
    idle_views: whether the last layer computes its vision stream, which nobody reads.
    """

    texts: int
    tokens: int
    longest: int
    read: int
    most_read: int
    words: int
    idle_views: bool


def port_rows(problem: StepProblem) -> Rows:
    """Return all of the batch, padding included."""
    texts = problem.shape.batch
    return Rows(texts, texts * LENGTH, LENGTH, texts * LENGTH, LENGTH, texts * LENGTH, idle_views=True)


def our_rows(problem: StepProblem) -> Rows:
    """Return only tokens, and after the last layer the masked words and the first positions."""
    lengths, masked = (problem.ids != 0).sum(dim=1), problem.labels >= 0
    read = masked.sum(dim=1) + ~masked[:, 0]
    return Rows(
        texts=len(lengths),
        tokens=int(lengths.sum()),
        longest=int(lengths.max()),
        read=int(read.sum()),
        most_read=int(read.max()),
        words=int(masked.sum()),
        idle_views=False,
    )


def trimmed_rows(problem: StepProblem) -> Rows:
    """Return padding up to the longest text, only masked words projected to the vocabulary, no idle views."""
    ours = our_rows(problem)
    every = ours.texts * ours.longest
    return ours._replace(tokens=every, read=every, most_read=ours.longest)


def products(config: PrevalentConfig, rows: Rows) -> Products:
    """Count what one step multiplies.

    Args:
        config: sizes of the model.
        rows: how much of the batch is computed.
    """
    size, inner = config.hidden_size, config.intermediate_size
    square, block = size * size, 2 * size * inner
    texts, tokens, views = rows.texts, rows.tokens, rows.texts * VIEWS

    def attention(queries: int, keys: int) -> int:
        return 2 * texts * queries * keys * size

    own = tokens * (4 * square + block) + attention(rows.longest, rows.longest)
    seen = views * (4 * square + block) + attention(VIEWS, VIEWS)
    across = attention(rows.longest, VIEWS)
    layer = own + seen + (tokens + views) * 4 * square + 2 * across
    last = (
        (2 * tokens + 2 * views) * square + across  # cross-attention of the text
        + (2 * tokens + 2 * rows.read) * square + attention(rows.most_read, rows.longest)
        + rows.read * block
    )  # fmt: skip
    idle = seen + (2 * tokens + 2 * views) * square + across if rows.idle_views else 0
    return Products(
        text=_ALL * config.text_layers * own,
        views=_NO_INPUTS * views * config.vision_size * size,
        cross=_ALL * ((config.cross_layers - 1) * layer + last) + _FORWARD * idle,
        head=_ALL * (rows.words * (square + size * config.vocab_size) + texts * (square + size * ACTIONS)),
    )


def table() -> str:
    """Return the products of every size as a Markdown table, with the port's multiple of each."""
    head = (
        "size",
        "computed",
        "text layers",
        "views",
        "cross-modal layers",
        "head",
        "all, 1e9",
        "port's, times",
    )
    lines = [head, ("---",) * len(head)]
    for shape in SHAPES:
        problem = StepProblem(shape)
        made = {
            "everything (port)": port_rows(problem),
            "up to the longest text": trimmed_rows(problem),
            "tokens that are read (ours)": our_rows(problem),
        }
        counts = {name: products(shape.config(), rows) for name, rows in made.items()}
        most = counts["everything (port)"].total
        for name, count in counts.items():
            parts = [f"{part / 1e9:.2f}" for part in (*count, count.total)]
            lines.append((shape.name, name, *parts, f"{most / count.total:.2f}"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table())
