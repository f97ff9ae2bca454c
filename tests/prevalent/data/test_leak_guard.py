"""Held-out items are found in what is trained on, however they are written."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.cli import main
from fq_toolkit.prevalent import DataError, NavWorld, check_disjoint, load_r2r
from fq_toolkit.prevalent.data.leak_guard import LeakGuard
from fq_toolkit.prevalent.world.items import NavItem
from tests.prevalent.world.worlds import line_world, write_json

LINE = line_world(*[1.0] * 11)  # a to l
TEXT = "Leave the kitchen by the black door, turn right onto the deck and stop beside the table."
HELD = NavItem("9_0", "line", 0.0, tuple("cdefg"), ("g",), TEXT)


def item(path: str, text: str = "", scan: str = "line") -> NavItem:
    return NavItem("1_0", scan, 0.0, tuple(path), (path[-1],), text)


def leak(training: NavItem, *, longer_by: int | None = 3, world: NavWorld | None = LINE) -> str:
    return LeakGuard([HELD], world=world, longer_by=longer_by).find(training) or ""


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=5, max_size=5), st.sets(st.sampled_from("def")))
def test_repetitions_and_gaps_hide_no_path(times: list[int], gaps: set[str]) -> None:
    path = "".join(v * n for v, n in zip(HELD.path, times, strict=True) if v not in gaps)
    assert "'9_0'" in leak(item(path))
    assert not leak(item(path, scan="other"))


def test_start_and_goal_alone_are_known_without_a_world() -> None:
    assert "from the start to the goal of the held-out item '9_0'" in leak(item("cg"), world=None)
    assert not leak(item("cf"), world=None)
    short = NavItem("8_0", "line", 0.0, ("c", "d"), ("d",), "")
    with pytest.raises(DataError, match="has the path"):
        check_disjoint([item("cd")], [short], world=LINE)


@settings(deadline=None)
@given(st.text("abhij", max_size=3), st.text("hijkl", max_size=3))
def test_joined_paths_are_found_inside(before: str, after: str) -> None:
    path = before + "cdefg" + after
    found = leak(item(path), world=None)
    if len(before + after) in (1, 2) and len({*itertools.pairwise(path)}) == len(path) - 1:
        assert not found  # as in R2R's own splits
    if not before + after or len(set(before)) + len(set(after)) >= 3:
        assert "the path of the held-out item '9_0'" in found
    assert leak(item(path), longer_by=1, world=None)
    assert not before + after or not leak(item(path), longer_by=None, world=None) or path.strip("c") == "defg"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXT, "has the words"),
        (TEXT.upper().replace(",", " ."), "has the words"),
        (f"Go up. {TEXT} Then walk on.", "inside its own"),
        (TEXT[:40], ""),
        (TEXT.replace("black", "white"), ""),
    ],
)
def test_words_are_compared(text: str, found: str) -> None:
    assert found in leak(item("ab", text))
    assert bool(found) == bool(leak(item("ab", text)))
    assert not leak(item("ab", text, scan="other"))


def test_short_texts_are_anybodys() -> None:
    held = HELD._replace(instruction="Go up the stairs and wait.")
    assert LeakGuard([held]).find(item("ab", held.instruction)) is None


@pytest.mark.parametrize("path", ["cg", "ccddeeffgg", "bcdefgh", "ab"])
def test_augmented_files_are_guarded(tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    def record(number: int, way: str, text: str) -> dict[str, object]:
        return {
            "path_id": number, "scan": "line", "heading": 0.0, "path": list(way), "instructions": [text],
            "distance": 5.0,
        }  # fmt: skip

    LINE.to_connectivity_json(tmp_path)
    write_json(tmp_path / "R2R_train.json", [record(1, "abcd", "go"), record(2, "fghi", "walk")])
    write_json(tmp_path / "R2R_val_seen.json", [record(9, "cdefg", TEXT)])
    more = write_json(tmp_path / "more.json", [record(3, path, TEXT if path == "ab" else "come")])
    for trainer in ("r2r", "prevalent"):
        words = ["train", trainer, "--data", str(tmp_path), "--connectivity", str(tmp_path), "--augmented"]
        assert main([*words, str(more), "--feature-dim", "4", "--out", str(tmp_path / "run")]) == 1
        error = capsys.readouterr().err
        assert "more.json: item '3_0'" in error
        assert "held-out item '9_0'" in error


def test_a_joined_training_file_is_refused(tmp_path: Path) -> None:
    record = {"path_id": 3, "scan": "line", "heading": 0.0, "path": list("abcdefgh"), "instructions": ["go"]}
    with pytest.raises(DataError, match=r"t\.json: item '3_0' has the path of .*'9_0' inside"):
        load_r2r(write_json(tmp_path / "t.json", [record]), world=LINE, held_out=[HELD])


def test_r2rs_own_splits_are_disjoint(real_world: NavWorld, tasks: Path) -> None:
    held = [i for s in ("val_seen", "val_unseen") for i in load_r2r(tasks / f"R2R_{s}.json")]
    check_disjoint(load_r2r(tasks / "R2R_train.json"), held, world=real_world)
    bare = [i._replace(path=(i.path[0], i.path[-1]), instruction="") for i in held]
    guard = LeakGuard(held, world=real_world)
    assert all(guard.find(entry) for entry in bare)
