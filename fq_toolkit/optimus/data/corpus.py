"""Sentences from files, from Hugging Face datasets, or from the embedded grammar.

Lines that cannot be used are skipped and counted by reason; nothing else is lost.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.optimus.data.grammar import GrammarCorpus
from fq_toolkit.optimus.data.text_files import (
    EMPTY,
    JSON_LINES,
    LINES,
    Skip,
    json_object,
    read_lines,
    reasons,
    tidy,
)
from fq_toolkit.training.errors import ConfigError, MissingExtraError

GRAMMAR = "grammar"
DATASETS = "datasets:"
NO_TEXT = "without text"


class Sentences(NamedTuple):
    """Sentences of one source.

    texts: in their order, each run of white space as one space.
    skipped: reason -> number of lines that were left out.
    """

    texts: list[str]
    skipped: dict[str, int]


class Corpus(NamedTuple):
    """Sentences to train on and sentences to measure with.

    skipped: reason -> number of lines left out, of both parts; of the latter where it is another file.
    grammar: the language, where the sentences are of the embedded one; else None.
    """

    train: list[str]
    valid: list[str]
    skipped: dict[str, int]
    grammar: GrammarCorpus | None = None


def load_corpus(
    data: str,
    valid: str | None = None,
    *,
    text_key: str = "text",
    limit: int = 0,
    measure_on: str | None = None,
    measure_text_key: str | None = None,
) -> Corpus:
    """Load the sentences of a run.

    Args:
        data: ``"grammar"``; a file of one sentence a line (.txt, .txt.gz) or of JSON lines (.jsonl,
            .jsonl.gz); or ``"datasets:NAME"``, ``"datasets:NAME:CONFIG"`` of Hugging Face.
        valid: the same for the sentences to measure with; None takes every twentieth of ``data`` away for
            them, or the split ``validation`` of a Hugging Face dataset. The grammar has its own.
        text_key: where the text is in a JSON line or in a row of a dataset.
        limit: train on the first so many sentences; 0 for all.
        measure_on: other sentences to measure with, in place of those that are kept from training.
        measure_text_key: where their text is, if not where ``text_key`` says.

    Raises:
        ConfigError: when something cannot be read or holds no sentence.
        MissingExtraError: for a Hugging Face dataset without the package ``datasets``.
    """
    corpus = _load_run_corpus(data, valid, text_key=text_key, limit=limit)
    if measure_on is None:
        return corpus
    other = read_sentences(measure_on, text_key=measure_text_key or text_key, split="test")
    return Corpus(corpus.train, other.texts, other.skipped)


def _load_run_corpus(data: str, valid: str | None, *, text_key: str, limit: int) -> Corpus:
    """Load what a run is trained on and what it keeps apart to measure with."""
    if data == GRAMMAR:
        if valid is not None:
            raise ConfigError("the grammar has its own held-out sentences: leave out --valid")
        language = GrammarCorpus()
        return Corpus(language.train[: limit or None], language.held_out, {}, language)
    train = read_sentences(data, text_key=text_key, split="train")
    if valid is None and data.startswith(DATASETS):
        held_out = read_sentences(data, text_key=text_key, split="validation")
    elif valid is None:
        if len(train.texts) < 20:  # fewer than two would be held out
            raise ConfigError(
                f"{data} has {len(train.texts)} sentences; at least 20 are needed to keep every twentieth "
                "for measuring, or give a file of its own with --valid"
            )
        held_out = Sentences(train.texts[::20], {})
        train = Sentences([text for i, text in enumerate(train.texts) if i % 20], train.skipped)
    else:
        held_out = read_sentences(valid, text_key=text_key, split="validation")
    skipped = dict(Counter(train.skipped) + Counter(held_out.skipped))
    return Corpus(train.texts[: limit or None], held_out.texts, skipped)


def read_sentences(source: str, *, text_key: str = "text", split: str = "train") -> Sentences:
    """Read one source of sentences.

    Args:
        source: a path or ``datasets:NAME``, as in `load_corpus`.
        text_key: where the text is in a JSON line or in a row of a dataset.
        split: of a Hugging Face dataset.

    Raises:
        ConfigError: when it cannot be read or holds no sentence.
        MissingExtraError: for a Hugging Face dataset without the package ``datasets``.
    """
    if source.startswith(DATASETS):
        read = _clean(_dataset_rows(source.removeprefix(DATASETS), split, text_key))
    elif source.endswith(LINES):
        read = _clean(read_lines(Path(source)))
    elif source.endswith(JSON_LINES):
        read = _clean(_json_text(line, text_key) for line in read_lines(Path(source)))
    else:
        raise ConfigError(
            f"data is {source!r}; expected {GRAMMAR!r}, a file ending in {', '.join((*LINES, *JSON_LINES))}, "
            f"or {DATASETS}NAME for a Hugging Face dataset"
        )
    if not read.texts:
        hint = f" Is the text under another name than {text_key!r}? See --text-key."
        raise ConfigError(
            f"{source} holds no sentence ({reasons(read.skipped)}).{hint * (NO_TEXT in read.skipped)}"
        )
    return read


def describe_skipped(skipped: dict[str, int]) -> str:
    """Return what was left out as a clause; empty if nothing was.

    Example:
        >>> describe_skipped({"empty": 2, "not UTF-8": 1})
        'skipped 2 empty, 1 not UTF-8'
    """
    return "skipped " + ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()) if skipped else ""


def _clean(texts: Iterable[str]) -> Sentences:
    """Normalize white space, and count lines that are empty or cannot be used (`Skip`)."""
    kept: list[str] = []
    skipped: Counter[str] = Counter()
    for text in map(tidy, texts):
        if isinstance(text, Skip):
            skipped[str(text)] += 1
        elif text:
            kept.append(text)
        else:
            skipped[EMPTY] += 1
    return Sentences(kept, dict(skipped))


def _json_text(line: str, key: str) -> str:
    """Return the text of a JSON line, or why there is none."""
    row = json_object(line)
    return row if isinstance(row, Skip) else _text_of(row, key)


def _text_of(row: Any, key: str) -> str:
    text = row.get(key)
    return text if isinstance(text, str) else Skip(NO_TEXT)


def _dataset_rows(name: str, split: str, key: str) -> Iterator[str]:
    """Read a column of a Hugging Face dataset."""
    try:
        datasets = importlib.import_module("datasets")
    except Exception as error:  # not installed, or broken in whatever way
        raise MissingExtraError(
            f"reading the Hugging Face dataset {name!r} needs the package datasets ({error}): "
            "pip install datasets, or save its sentences to a .txt or .jsonl file"
        ) from error
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # of the package, its readers or the network: they share no class
        raise ConfigError(f"the dataset {name!r} has no usable split {split!r}: {error}") from error
    return (_text_of(row, key) for row in rows)
