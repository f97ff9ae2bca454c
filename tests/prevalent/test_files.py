"""Files and folders of navigation: what is written, and what is said when it cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.prevalent import MiniWorld, PrevalentConfig, PrevalentModel, Speaker, Vocabulary
from fq_toolkit.prevalent.files import is_record_file, read_json, read_records, write_json
from fq_toolkit.training.errors import RunError

WORDS = Vocabulary.train(["go left"])
SAVES: dict[str, Callable[[Path], Any]] = {
    "model": lambda folder: PrevalentModel(
        PrevalentConfig.tiny(vocab_size=9, vision_size=12)
    ).save_pretrained(folder),
    "speaker": lambda folder: Speaker(WORDS, feature_dim=4, hidden_size=4, word_size=2).save_pretrained(
        folder
    ),
    "world": lambda folder: MiniWorld(0, num_scans=1).to_connectivity_json(folder),
}


@pytest.mark.parametrize("what", SAVES)
def test_a_folder_that_cannot_be_created_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here is a file")
    with pytest.raises(RunError, match=r"cannot create .*file.*: "):
        SAVES[what](tmp_path / "file" / "folder")


@pytest.mark.parametrize("indent", [None, 1])
def test_json_comes_back(indent: int | None, tmp_path: Path) -> None:
    value = [{"a": 1.5, "b": ["\u00e9", None]}, {"a": -3}]
    path = write_json(tmp_path / "v.json", value, indent=indent)
    assert read_json(path) == read_records(path) == value


def test_names_of_record_files(tmp_path: Path) -> None:
    for name in ("a.json", "a.b.JSON", "a.jsonl", "a.ndjson.gz", "a.json.gz"):
        assert is_record_file(name), name
    for name in ("a", "a.gz", "json", ".json", "a.json.bz2", "a.npz"):
        assert not is_record_file(name), name
    (tmp_path / "folder.json").mkdir()
    assert not is_record_file(tmp_path / "folder.json")
