"""Sentences with labels: from the embedded grammar, from files per label, tables, or JSON lines."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.optimus.data.corpus import GRAMMAR
from fq_toolkit.optimus.data.grammar import FACTORS, GrammarCorpus, parse
from fq_toolkit.optimus.data.text_files import (
    EMPTY,
    JSON_LINES,
    NO_TAB,
    TABLES,
    Skip,
    json_object,
    read_lines,
    reasons,
    tidy,
)
from fq_toolkit.training.errors import ConfigError

# Parts of a folder, the one to learn from first: STEM.train.LABEL and STEM.test.LABEL, else STEM.dev.LABEL.
_LEARN, _MEASURE = ("train", "dev"), ("test", "dev")
_EVERY = 20

Row = tuple[str, str]


class Labelled(NamedTuple):
    """Sentences with the numbers of their labels.

    texts: the sentences.
    labels: int64 (N,), from 0.
    """

    texts: list[str]
    labels: np.ndarray

    def take(self, rows: Iterable[int]) -> "Labelled":
        """Return some of them."""
        chosen = [int(row) for row in rows]
        return Labelled([self.texts[row] for row in chosen], self.labels[chosen])

    def of(self, label: int) -> list[str]:
        """Return the sentences of a label."""
        return [self.texts[row] for row in np.flatnonzero(self.labels == label)]


class LabelledCorpus(NamedTuple):
    """Sentences to learn from and sentences to measure with.

    names: of the labels.
    skipped: reason -> number of lines left out, of both parts; of ``valid`` where it is another file.
    is_grammar: whether the right label of any sentence is known.
    """

    train: Labelled
    valid: Labelled
    names: list[str]
    skipped: dict[str, int]
    is_grammar: bool = False


def load_labelled(
    data: str,
    valid: str | None = None,
    *,
    text_key: str = "text",
    label_key: str = "label",
    limit: int = 0,
    seed: int = 0,
    measure_on: str | None = None,
    measure_keys: tuple[str | None, str | None] = (None, None),
) -> LabelledCorpus:
    """Load labelled sentences, in an order that is shuffled by ``seed``.

    Args:
        data: ``"grammar"``; a table LABEL-tab-TEXT (.tsv, .tsv.gz); JSON lines (.jsonl, .jsonl.gz); the
            common beginning of one file per label, ``reviews/sentiment.dev`` for ``sentiment.dev.0`` and
            ``sentiment.dev.1``; or a folder of such files with parts, ``STEM.train.LABEL``, or
            ``STEM.dev.LABEL`` where there is none, to learn from and ``STEM.test.LABEL`` to measure with.
        valid: the sentences to measure with, in the same formats; None takes those of the folder or of the
            grammar, or every twentieth of ``data``.
        text_key: where the text is in a JSON line.
        label_key: where the label is in a JSON line.
        limit: learn from the first so many, after shuffling; 0 for all.
        seed: of the order.
        measure_on: other sentences to measure with, in place of those that are kept from training.
        measure_keys: where their text and label are, if not where ``text_key`` and ``label_key`` say.

    Raises:
        ConfigError: when something cannot be read, holds no sentence or fewer than two labels.
    """
    skipped: Counter[str] = Counter()
    held_out: list[Row] | None = None
    if data == GRAMMAR:
        if valid is not None:
            raise ConfigError("the grammar has its own held-out sentences: leave out --valid")
        language = GrammarCorpus()
        rows, held_out = (
            [(_mood(text), text) for text in part] for part in (language.train, language.held_out)
        )
        names = list(FACTORS["label"])
    else:
        keys = text_key, label_key
        if Path(data).is_dir():
            rows = _read(_part(data, _LEARN), keys, skipped)
            if valid is None:
                held_out = _read(_part(data, _MEASURE), keys, skipped)
        else:
            rows = _read(data, keys, skipped)
        if valid is not None:
            held_out = _read(valid, keys, skipped)
        names = sorted({label for label, _ in rows})
    if held_out is None:
        held_out = rows[::_EVERY]
        rows = [row for number, row in enumerate(rows) if number % _EVERY]
    # After the split: what is trained on must not depend on what is measured with.
    is_grammar = data == GRAMMAR and measure_on is None
    if measure_on is not None:
        skipped.clear()
        text_key, label_key = measure_keys[0] or text_key, measure_keys[1] or label_key
        held_out = _read(measure_on, (text_key, label_key), skipped)
    if len(names) < 2:
        raise ConfigError(f"{data} has the label(s) {', '.join(names) or 'none'}; expected at least two")
    unknown = {label for label, _ in held_out} - set(names)
    if unknown:
        raise ConfigError(
            f"labels to measure with that are not among those to learn: {', '.join(sorted(unknown))}; "
            f"known: {', '.join(names)}"
        )
    # One generator for both, first the rows to learn from: committed figures depend on this order.
    random = np.random.default_rng(seed)
    train, measure = (_numbered(part, names, random) for part in (rows, held_out))
    if limit:
        train = train.take(range(min(limit, len(train.texts))))
    left = [names[label] for label in np.unique(train.labels)]
    if len(left) < 2:
        raise ConfigError(
            f"of the labels {', '.join(names)} of {data} the sentences to learn from have "
            f"{', '.join(left) or 'none'}; expected at least two: give more of them, or --valid"
        )
    return LabelledCorpus(train, measure, names, dict(skipped), is_grammar)


def _mood(sentence: str) -> str:
    """Return the label of a sentence of the grammar."""
    factors = parse(sentence)
    if factors is None:
        raise ValueError(f"{sentence!r} is not a sentence of the grammar")
    return factors.label


def _numbered(rows: list[Row], names: list[str], random: np.random.Generator) -> Labelled:
    """Return rows in random order, with labels as numbers."""
    number = {name: i for i, name in enumerate(names)}
    order = random.permutation(len(rows))
    labels = np.array([number[rows[i][0]] for i in order], dtype=np.int64)
    return Labelled([rows[i][1] for i in order], labels)


def _part(folder: str, parts: tuple[str, ...]) -> str:
    """Return the common beginning STEM.PART of the files of a part of a folder."""
    for part in parts:
        files = [path for path in Path(folder).glob(f"*.{part}.*") if path.is_file()]
        stems = {path.name.partition(f".{part}.")[0] for path in files}
        if len(stems) > 1:
            raise ConfigError(
                f"{folder} holds several data sets: {', '.join(sorted(stems))}; "
                f"give --data {folder}/STEM.{part}"
            )
        if stems:
            return str(Path(folder) / f"{stems.pop()}.{part}")
    raise ConfigError(f"{folder} has no files STEM.{parts[0]}.LABEL or STEM.{parts[1]}.LABEL")


def _read(source: str, keys: tuple[str, str], skipped: Counter[str]) -> list[Row]:
    """Read (label, text) rows, and count in ``skipped`` the lines that cannot be used."""
    raw: list[tuple[str, str]] = []
    if source.endswith(TABLES):
        for line in read_lines(Path(source)):
            label, tab, text = line.partition("\t")
            usable = tab or isinstance(line, Skip) or not line.strip()
            raw.append((label.strip(), text) if tab else ("", line if usable else Skip(NO_TAB)))
    elif source.endswith(JSON_LINES):
        raw = [_from_json(line, *keys) for line in read_lines(Path(source))]
    else:
        path = Path(source)
        files = sorted(file for file in path.parent.glob(f"{path.name}.*") if file.is_file())
        if not files:
            raise ConfigError(
                f"data is {source!r}; expected {GRAMMAR!r}, a file ending in "
                f"{', '.join((*TABLES, *JSON_LINES))}, a folder of STEM.PART.LABEL files, or the beginning "
                "of the names of one file per label"
            )
        for file in files:
            label = file.name.removeprefix(f"{path.name}.").removesuffix(".gz").removesuffix(".txt")
            raw += [(label, text) for text in read_lines(file)]
    rows: list[Row] = []
    for label, text in ((tidy(label), tidy(text)) for label, text in raw):
        if reason := next((part for part in (text, label) if isinstance(part, Skip)), None):
            skipped[str(reason)] += 1
        elif not label or not text:
            skipped[EMPTY] += 1
        else:
            rows.append((label, text))
    if not rows:
        raise ConfigError(f"{source} holds no labelled sentence ({reasons(skipped)})")
    return rows


def _from_json(line: str, text_key: str, label_key: str) -> Row:
    """Return label and text of a JSON line; the text is a skip where it cannot be used."""
    row = json_object(line)
    if isinstance(row, Skip):
        return "", row
    text, label = row.get(text_key), row.get(label_key)
    if not isinstance(text, str) or not isinstance(label, str | int) or isinstance(label, bool):
        return "", Skip(f"without {text_key!r} and {label_key!r}")
    return str(label), text
