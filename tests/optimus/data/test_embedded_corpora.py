"""The embedded corpora are the same for everybody: committed figures depend on every sentence of them."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.optimus.data.corpus import load_corpus
from fq_toolkit.optimus.data.dialogs import load_dialogs, questions
from fq_toolkit.optimus.data.grammar import FACTORS, GrammarCorpus
from fq_toolkit.optimus.data.labels import load_labelled
from fq_toolkit.optimus.metrics.analogies import draw_analogies


def grammar() -> Any:
    corpus = GrammarCorpus()
    return [corpus.train, corpus.held_out, corpus.train_factors, corpus.held_out_factors, FACTORS]


def analogies() -> Any:
    corpus = GrammarCorpus()
    return [draw_analogies(corpus, 300, seed=0), draw_analogies(corpus, 10, seed=7)]


def labelled() -> Any:
    corpus = load_labelled("grammar", seed=0)
    return [
        corpus.names,
        *([part.texts, part.labels.tolist()] for part in (corpus.train, corpus.valid)),
    ]


def dialogs() -> Any:
    corpus = load_dialogs("embedded", seed=0)
    return [corpus.train, corpus.valid, corpus.answers_are_known, questions()]


def sentences() -> Any:
    corpus = load_corpus("grammar", limit=100)
    return [corpus.train, corpus.valid, corpus.skipped]


def test_their_words_are_part_of_the_package(project_root: Path) -> None:
    settings = (project_root / "pyproject.toml").read_text(encoding="utf-8")
    (patterns,) = re.findall(r"^fq_toolkit = (\[.*\])$", settings, re.MULTILINE)
    package = project_root / "fq_toolkit"
    packaged = {path for pattern in json.loads(patterns) for path in package.glob(pattern)}
    assert set(package.glob("optimus/**/*.json")) <= packaged


@pytest.mark.parametrize(
    ("corpus", "digest"),
    [
        (grammar, "7b13f9c5c232283d"),
        (analogies, "60de52c50deec4a3"),
        (labelled, "7b8cfcda5a19fa1c"),
        (dialogs, "221f2649d6a275aa"),
        (sentences, "08c29c2f6ae14ae8"),
    ],
)
def test_every_sentence_is_where_it_was(corpus: Callable[[], Any], digest: str) -> None:
    assert hashlib.sha256(json.dumps(corpus()).encode()).hexdigest()[:16] == digest
