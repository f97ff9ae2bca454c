import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.training.config import changes, from_mapping, load_config, read_json, save_config
from fq_toolkit.training.errors import ConfigError


@dataclass(frozen=True)
class Options:
    steps: int = 10
    rate: float = 0.1
    mode: Literal["a", "b"] = "a"
    layers: tuple[int, ...] = (0, 1)
    betas: tuple[float, float] = (0.0, 0.9)
    limit: float | None = None
    fast: bool = False


numbers = st.floats(allow_nan=False, allow_infinity=False)
options = st.builds(
    Options,
    steps=st.integers(),
    rate=numbers,
    mode=st.sampled_from(["a", "b"]),
    layers=st.lists(st.integers(), max_size=4).map(tuple),
    betas=st.tuples(numbers, numbers),
    limit=st.none() | numbers,
    fast=st.booleans(),
)


@given(options)
def test_json_and_back(config: Options) -> None:
    text = json.dumps(dataclasses.asdict(config))
    assert from_mapping(Options, json.loads(text), source="test") == config


def test_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = Options(steps=3, layers=(2,), limit=1.5)
    save_config(config, path, trainer="toy")
    assert read_json(path)[0] == "toy"
    assert load_config(Options, path, trainer="toy") == config
    with pytest.raises(ConfigError, match="'toy'; expected 'other'"):
        load_config(Options, path, trainer="other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown option 'stepz'; did you mean 'steps'"),
        ({"qqq": 1}, "unknown option 'qqq'; known: steps, rate"),
        ({"steps": "many"}, r"steps is 'many' \(str\); expected int"),
        ({"steps": 1.5}, r"steps is 1.5 \(float\); expected int"),
        ({"steps": True}, r"steps is True \(bool\); expected int"),
        ({"steps": None}, "steps is None"),
        ({"mode": "c"}, "mode is 'c'; expected one of 'a', 'b'"),
        ({"layers": 1}, "layers is 1; expected a list"),
        ({"layers": [0, "x"]}, "layers is 'x'"),
        ({"betas": [0.1]}, "betas has 1 entries; expected 2"),
        ({"limit": "x"}, "limit is 'x'"),
        ({"fast": 1}, "fast is 1"),
    ],
)
def test_wrong_values_say_what_was_expected(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Options, values, source="file.json")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "expected a JSON object")])
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_json(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_json(tmp_path / "absent.json")


def test_changes_are_named_with_old_and_new() -> None:
    found = changes(Options(), Options(steps=20, mode="b"))
    assert [str(change) for change in found] == ["steps: 10 -> 20", "mode: 'a' -> 'b'"]
    assert changes(Options(), Options()) == []
