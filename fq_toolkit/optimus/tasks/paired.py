"""What training on labelled sentences and on pairs of texts shares: options and token tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fq_toolkit.optimus.model.batch import TextBatch, Tokenizers, TokenRows, collate, tokenize
from fq_toolkit.optimus.tasks.config import VAEConfig
from fq_toolkit.training.bounds import at_least
from fq_toolkit.training.errors import ConfigError

EMBEDDED = "embedded"


@dataclass(frozen=True)
class PairedConfig(VAEConfig):
    """Options that both tasks have; goes to ``config.json`` and back."""

    preset: str = EMBEDDED
    """Where the other options start: embedded, the corpus that comes with the package."""
    data: str = EMBEDDED
    """What to train on: embedded, or files (see --help of the task)."""
    eval_rows: Annotated[int, at_least(2)] = 200
    """Rows to measure with."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        super().__post_init__()
        if self.preset != EMBEDDED:
            raise ConfigError(f"preset is {self.preset!r}; known: {EMBEDDED}")


class TokenTable:
    """Texts as token ids, to be cut into batches.

    Args:
        texts: one a row.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a text.

    Attributes:
        fits: bool (N,), whether a text has at most ``max_length`` tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> None:
        # One token more than permitted stays, by which the texts that are too long are known.
        self.rows = tokenize(texts, tokenizers, max_length=max_length + 1)
        self.tokenizers = tokenizers
        self.fits = np.array(
            [
                max(len(a), len(b)) <= max_length
                for a, b in zip(self.rows.encoder, self.rows.decoder, strict=True)
            ],
            dtype=bool,
        )

    def batch(self, rows: Sequence[int]) -> TextBatch:
        """Return a padded `TextBatch` of these rows, on the CPU."""
        read, written = ([part[i] for i in rows] for part in (self.rows.encoder, self.rows.decoder))
        return collate(TokenRows(read, written, 0), self.tokenizers)

    def lengths(self, rows: Iterable[int]) -> list[int]:
        """Return the decoder's tokens of these rows."""
        return [len(self.rows.decoder[i]) for i in rows]
