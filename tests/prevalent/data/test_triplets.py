"""Triplets: labels, files, and the guard against validation paths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import (
    BatchedNavEnv,
    DataError,
    MiniWorld,
    action_label,
    collect_triplets,
    load_triplets,
    save_triplets,
)
from fq_toolkit.prevalent.world.angles import STEP, wrap
from tests.prevalent.world.worlds import line_world, write_json


def encode(text: str) -> list[int]:
    ids = [101, *(len(word) for word in text.split()), 102][:80]
    return ids + [0] * (80 - len(ids))


@given(seed=st.integers(0, 5), view=st.integers(0, 35), place=st.integers(0, 10**6))
@settings(deadline=None)
def test_labels_number_the_neighbours(seed: int, view: int, place: int) -> None:
    world = MiniWorld(seed, num_scans=1)
    scan = world.scan(world.names[0])
    here = place % len(scan)
    name, neighbors = scan.viewpoints[here], scan.neighbors[here][scan.mask[here]]

    def labels(kind: Any) -> list[int]:
        return [action_label(world, scan.name, name, view, scan.viewpoints[j], kind=kind) for j in neighbors]

    count = len(neighbors)
    assert labels("candidate") == list(range(1, count + 1))
    by_heading = labels("prevalent")
    assert sorted(by_heading) == list(range(1, count + 1))
    turns = np.abs(wrap(scan.headings[here][:count] - view % 12 * STEP))
    assert (np.diff(turns[np.argsort(by_heading)]) >= -1e-6).all()
    for slot, label in enumerate(labels("view36")):
        row, column = divmod(label - 1, 12)
        assert row * 12 + (column + view) % 12 == scan.views[here, slot]
    for kind in ("prevalent", "view36", "candidate"):
        assert action_label(world, scan.name, name, view, None, kind=kind) == 0


def test_collecting_walks_as_the_environment_does(mini: MiniWorld) -> None:
    items = mini.items(6)
    found = collect_triplets(mini, items, encode, kind="candidate")
    env = BatchedNavEnv(mini)
    obs = env.reset(items)
    for step in range(max(len(triplet.path) for triplet in found)):
        actions = np.array([t.actions[step] if step < len(t.actions) else 0 for t in found])
        for row, triplet in enumerate(found):
            if step < len(triplet.path):
                assert triplet.path[step].viewpoint == obs.viewpoints[row]
                assert triplet.path[step].view == obs.view[row]
                if triplet.actions[step]:
                    shown, heading, elevation = triplet.directions[step]
                    assert shown == obs.candidate_views[row, actions[row]]
                    assert heading == pytest.approx(obs.candidate_headings[row, actions[row]])
                    assert elevation == pytest.approx(obs.candidate_elevations[row, actions[row]])
        obs, _, _ = env.step(actions)
    assert obs.ended.all()
    for item, triplet in zip(items, found, strict=True):
        assert tuple(pose.viewpoint for pose in triplet.path) == item.path
        assert (triplet.actions[-1], triplet.directions[-1]) == (0, (-1.0, 90.0, 90.0))
        assert len(triplet.tokens) == 80


def test_files_give_back_what_went_in(tmp_path: Path, mini: MiniWorld) -> None:
    triplets = collect_triplets(mini, mini.items(5), encode)
    path = save_triplets(tmp_path / "triplets.json", triplets)
    assert load_triplets(path) == triplets
    record = json.loads(path.read_text())[0]
    assert set(record) == {"instr_id", "path", "teacher_actions", "teacher_action_emd", "instr_encoding"}
    assert record["teacher_action_emd"][-1] == [-1, 90, 90]
    assert record["teacher_actions"][-1] == 0


def test_a_validation_path_is_refused(tmp_path: Path, mini: MiniWorld) -> None:
    train, validation = mini.items(8, seed=0), mini.items(3, seed=1)
    path = save_triplets(tmp_path / "t.json", collect_triplets(mini, [*train, *validation], encode))
    with pytest.raises(DataError, match=r"t\.json: item '.*' has the path of the held-out item '0_0'"):
        load_triplets(path, held_out=validation[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"instr_encoding": [1] * 81},
            "instruction '0_0' has 79 tokens, more than the limit of 78: raise the limit",
        ),
        ({"instr_encoding": [1] * 79}, "item '0_0': instr_encoding has 79 ids; expected 80, padded with 0"),
        ({"instr_encoding": ["a"] * 80}, "item '0_0': .* no number"),
        ({"teacher_actions": [1]}, "item '0_0': 5 poses, 1 actions and 5 action embeddings"),
        ({"teacher_actions": [1, 1, 1, 1, 1]}, r"item '0_0': teacher_actions must be 0 to 36 and end with 0"),
        ({"teacher_actions": [37, 1, 1, 1, 0]}, r"item '0_0': teacher_actions must be 0 to 36"),
        ({"teacher_action_emd": [[1, 2]] * 5}, "item '0_0': an action embedding"),
        ({"path": [["s", "v", 36, 0, 0]] * 5}, r"item '0_0', step 0 is .*; expected \[scan, viewpoint, view"),
        ({"path": [], "teacher_actions": [], "teacher_action_emd": []}, "item '0_0': 0 poses"),
    ],
)
def test_a_wrong_item_is_named(tmp_path: Path, mini: MiniWorld, change: dict[str, Any], message: str) -> None:
    items = [item for item in mini.items(9) if len(item.path) == 5][:1]
    path = save_triplets(
        tmp_path / "t.json", collect_triplets(mini, [items[0]._replace(instr_id="0_0")], encode)
    )
    write_json(path, [json.loads(path.read_text())[0] | change])
    with pytest.raises(DataError, match=rf"t\.json: {message}"):
        load_triplets(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"), ('[{"instr', "not valid JSON")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=rf"t\.json is .*{message}"):
        load_triplets(tmp_path / "t.json")


def test_mistakes_are_named(mini: MiniWorld) -> None:
    item = mini.items(1)[0]
    with pytest.raises(DataError, match="item '0_0': the instruction has 3 token ids; expected exactly 80"):
        collect_triplets(mini, [item], lambda text: [1, 2, 3])
    with pytest.raises(DataError, match=r"item '0_0': .* there is no edge from"):
        collect_triplets(mini, [item._replace(path=item.path[::2])], encode)
    with pytest.raises(
        ValueError, match="kind must be one of 'prevalent', 'view36', 'candidate', got 'best'"
    ):
        action_label(line_world(1.0), "line", "a", 0, None, kind="best")
