"""Reading sentences: every format gives the same, and what cannot be used is counted or said."""

import gzip
import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.optimus.data.corpus import describe_skipped, load_corpus, read_sentences
from fq_toolkit.training.errors import ConfigError, MissingExtraError

GOOD = ["a man runs .", "two dogs — one café .", "snow"]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines(tmp_path: Path, name: str, end: str) -> None:
    assert read_sentences(write(tmp_path / name, end.join(GOOD).encode())) == (GOOD, {})


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    data = "\n".join(json.dumps({"sentence": text, "label": 1}) for text in GOOD).encode()
    assert read_sentences(write(tmp_path / name, data), text_key="sentence") == (GOOD, {})


def test_a_byte_order_mark_is_no_part_of_the_first_sentence(tmp_path: Path) -> None:
    assert read_sentences(write(tmp_path / "a.txt", b"\xef\xbb\xbfsnow\n")).texts == ["snow"]


LINES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=12).map(
            str.encode
        ),
        st.binary(max_size=6).map(lambda data: data.replace(b"\n", b"")),
    ),
    max_size=8,
)


@given(LINES)
def test_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = write(tmp_path_factory.mktemp("lines") / "a.txt", b"\n".join([b"kept", *lines]) + b"\n")
    found = read_sentences(path)
    assert len(found.texts) + sum(found.skipped.values()) == len(lines) + 1
    assert found.texts[0] == "kept"
    assert set(found.skipped) <= {"empty", "not UTF-8"}


def test_what_is_skipped_is_counted_by_reason(tmp_path: Path) -> None:
    rows = [b'{"text": "one"}', b"", b"not json", b'{"text": 3}', b'["text"]', b'{"other": "x"}', b"\xff\xfe",
            b'{"text": "   "}', b'{"text": "two"}']  # fmt: skip
    found = read_sentences(write(tmp_path / "a.jsonl", b"\n".join(rows)))
    assert found.texts == ["one", "two"]
    assert found.skipped == {"empty": 2, "not a JSON object": 2, "without text": 2, "not UTF-8": 1}
    assert describe_skipped(found.skipped).startswith("skipped 2 empty")
    assert describe_skipped({}) == ""


def test_a_long_line_is_one_sentence(tmp_path: Path) -> None:
    assert len(read_sentences(write(tmp_path / "a.txt", b"word " * 10_000)).texts[0].split()) == 10_000


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"", "holds no sentence .no lines."),
        ("a.txt", b"\n \n", "holds no sentence .2 empty."),
        ("a.txt", b"\xff\n", "1 not UTF-8"),
        ("a.jsonl", b'{"body": "x"}', "See --text-key"),
        ("a.csv", b"x", "expected 'grammar', a file ending in .txt"),
    ],
)
def test_a_corpus_without_a_sentence_is_an_error(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_sentences(write(tmp_path / name, data))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_sentences(str(tmp_path / "absent.txt"))
    (tmp_path / "bad.txt.gz").write_bytes(b"not packed")
    with pytest.raises(ConfigError, match="damaged or not packed"):
        read_sentences(str(tmp_path / "bad.txt.gz"))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"words " * 10_000)[:-9])
    with pytest.raises(ConfigError, match="damaged or not packed"):
        read_sentences(str(tmp_path / "cut.txt.gz"))


def test_every_twentieth_is_kept_for_measuring(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(100)]
    path = write(tmp_path / "a.txt", "\n".join(["", *texts]).encode())
    corpus = load_corpus(path)
    assert corpus.valid == texts[::20]
    assert sorted(corpus.train + corpus.valid) == sorted(texts)
    assert corpus.skipped == {"empty": 1}
    assert load_corpus(path, limit=7).train == corpus.train[:7]
    other = write(tmp_path / "b.txt", b"one\n\ntwo\n")
    assert load_corpus(path, other) == (texts, ["one", "two"], {"empty": 2}, None)
    with pytest.raises(ConfigError, match="at least 20 are needed"):
        load_corpus(other)


def test_the_grammar_has_its_own_parts() -> None:
    corpus = load_corpus("grammar")
    assert corpus.grammar is not None
    assert (corpus.train, corpus.valid) == (corpus.grammar.train, corpus.grammar.held_out)
    with pytest.raises(ConfigError, match="leave out --valid"):
        load_corpus("grammar", "b.txt")


def test_hugging_face_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": [{"s": "one"}, {"s": None}, {"s": "two"}], "validation": [{"s": "three"}]}

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        assert (path, config) == ("some/set", "plain")
        return rows[split]  # type: ignore[return-value]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    corpus = load_corpus("datasets:some/set:plain", text_key="s")
    assert corpus == (["one", "two"], ["three"], {"without text": 1}, None)
    rows.pop("validation")
    with pytest.raises(ConfigError, match="no usable split 'validation'"):
        load_corpus("datasets:some/set:plain", text_key="s")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="needs the package datasets"):
        load_corpus("datasets:some/set")
