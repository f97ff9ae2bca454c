"""The floors of the package: what each sub-package may stand on."""

import pytest

from tests.import_graph import child_graph, module_graph

MAY_USE: dict[str, set[str]] = {
    "files": set(),
    "world": {"files"},
    "text": {"files", "world"},
    "model": {"files", "world", "text"},
    "data": {"files", "world", "text"},
    "metrics": {"files", "world", "data"},
    "miniworld": {"files", "world", "data"},
    "tasks": {"files", "world", "text", "model", "data", "metrics", "miniworld"},
}


@pytest.fixture(scope="module")
def used() -> dict[str, set[str]]:
    return child_graph("fq_toolkit.prevalent", module_graph())


def test_every_part_has_a_floor(used: dict[str, set[str]]) -> None:
    assert used.keys() - {"__init__"} == MAY_USE.keys()


@pytest.mark.parametrize("part", MAY_USE)
def test_parts_use_only_what_is_below(part: str, used: dict[str, set[str]]) -> None:
    assert used[part] <= MAY_USE[part]
