"""Labelled sentences from every format, and what cannot be used."""

import gzip
import json

import numpy as np
import pytest

from fq_toolkit.optimus.data.grammar import parse
from fq_toolkit.optimus.data.labels import Labelled, load_labelled
from fq_toolkit.training.errors import ConfigError

ROWS = [(f"label{i % 3}", f"sentence number {i}") for i in range(60)]


def _write(folder, kind):
    if kind == "tsv":
        path = folder / "rows.tsv"
        path.write_text("".join(f"{label}\t{text}\n" for label, text in ROWS))
    elif kind == "tsv.gz":
        path = folder / "rows.tsv.gz"
        path.write_bytes(gzip.compress("".join(f"{label}\t{text}\n" for label, text in ROWS).encode()))
    elif kind == "jsonl":
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps({"label": a, "text": b}) + "\n" for a, b in ROWS))
    else:
        path = folder / "rows.dev"
        for name in sorted({label for label, _ in ROWS}):
            lines = [text for label, text in ROWS if label == name]
            (folder / f"rows.dev.{name}").write_text("\n".join(lines) + "\n")
    return path


def _pairs(part: Labelled, names):
    return {(names[label], text) for label, text in zip(part.labels, part.texts, strict=True)}


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "jsonl", "files"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    corpus = load_labelled(str(_write(tmp_path, kind)))
    assert corpus.names == ["label0", "label1", "label2"]
    assert len(corpus.valid.texts) == 3
    assert _pairs(corpus.train, corpus.names) | _pairs(corpus.valid, corpus.names) == set(ROWS)
    assert corpus.skipped == {}


def test_a_folder_has_parts(tmp_path):
    _write(tmp_path, "files")
    for name in ("label0", "label1"):
        (tmp_path / f"rows.test.{name}").write_text("measured\n")
    corpus = load_labelled(str(tmp_path))
    assert _pairs(corpus.train, corpus.names) == set(ROWS)
    assert _pairs(corpus.valid, corpus.names) == {("label0", "measured"), ("label1", "measured")}
    (tmp_path / "rows.train.label0").write_text("learned\n")
    (tmp_path / "rows.train.label1").write_text("learned too\n")
    assert sorted(load_labelled(str(tmp_path)).train.texts) == ["learned", "learned too"]
    (tmp_path / "other.train.x").write_text("x\n")
    with pytest.raises(ConfigError, match="several data sets: other, rows"):
        load_labelled(str(tmp_path))


def test_the_order_is_the_seeds_and_the_limit_comes_after_it(tmp_path):
    path = str(_write(tmp_path, "tsv"))
    one, same, other = (load_labelled(path, seed=seed) for seed in (1, 1, 2))
    assert one.train.texts == same.train.texts != other.train.texts
    few = load_labelled(path, seed=1, limit=9)
    assert few.train.texts == one.train.texts[:9]
    assert np.array_equal(few.train.labels, one.train.labels[:9])


def test_the_grammar_labels_itself():
    corpus = load_labelled("grammar")
    for part in (corpus.train, corpus.valid):
        for label, text in list(zip(part.labels, part.texts, strict=True))[:50]:
            assert parse(text).label == corpus.names[label]
    assert corpus.is_grammar
    assert parse(corpus.train.of(1)[0]).label == corpus.names[1]


def test_what_cannot_be_used_is_counted(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"a\tgood one\nb\t  \n\nno tab here\nb\tbad \xff byte\n" + b"b\tgood two\n" * 3)
    corpus = load_labelled(str(path), str(path))
    assert corpus.skipped == {"empty": 4, "without a tab": 2, "not UTF-8": 2}  # once in each part
    lines = [b'{"text": "x", "label": 1}', b'{"text": "y"}', b"[1]", b"{", b'{"text": "z", "label": "2"}']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    corpus = load_labelled(str(path), str(path))
    assert corpus.names == ["1", "2"]
    assert corpus.skipped == {"without 'text' and 'label'": 2, "not a JSON object": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no labelled sentence"), ("a\tone\na\ttwo\n", "expected at least two")],
)
def test_too_little_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.tsv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_labelled(str(path))


def test_unknown_sources_and_labels_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected 'grammar', a file ending in"):
        load_labelled(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="has no files"):
        load_labelled(str(tmp_path))
    with pytest.raises(ConfigError, match="leave out --valid"):
        load_labelled("grammar", "x.tsv")
    path = _write(tmp_path, "tsv")
    (tmp_path / "new.tsv").write_text("other\ttext\nlabel0\ttext\n")
    with pytest.raises(ConfigError, match="not among those to learn: other"):
        load_labelled(str(path), str(tmp_path / "new.tsv"))
