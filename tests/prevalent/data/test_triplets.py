"""Triplets: labels, files, and the guard against validation paths."""

import gzip
import json
import re
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
    Triplet,
    action_label,
    collect_triplets,
    load_triplets,
    save_triplets,
)
from fq_toolkit.prevalent.world.angles import STEP, wrap
from tests.prevalent.world.worlds import line_world, write_json

WORLD = MiniWorld(0)


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


WRITTEN = {
    ".json": lambda records: json.dumps(records).encode(),
    ".jsonl": lambda records: "\n".join(map(json.dumps, records)).encode(),
    ".json.gz": lambda records: gzip.compress(json.dumps(records).encode()),
    ".jsonl.gz": lambda records: gzip.compress("\n".join(map(json.dumps, records)).encode()),
}


def write_parts(folder: Path, triplets: list[Triplet], endings: list[str]) -> list[Path]:
    """Write every k-th triplet into the k-th of some files."""
    folder.mkdir()
    paths = []
    for number, ending in enumerate(endings):
        plain = save_triplets(folder / "plain", triplets[number :: len(endings)])
        paths.append(folder / f"part{number}{ending}")
        paths[-1].write_bytes(WRITTEN[ending](json.loads(plain.read_text())))
        plain.unlink()
    return paths


@settings(max_examples=15, deadline=None)
@given(endings=st.lists(st.sampled_from(sorted(WRITTEN)), min_size=1, max_size=4))
def test_a_folder_and_a_list_hold_what_their_files_hold(
    tmp_path_factory: pytest.TempPathFactory, endings: list[str]
) -> None:
    triplets = collect_triplets(WORLD, WORLD.items(9), encode)
    folder = tmp_path_factory.mktemp("t") / "parts"
    paths = write_parts(folder, triplets, endings)
    (folder / "README.md").write_text("about them")
    (folder / ".hidden.json").write_text("no JSON")
    wanted = [triplet for number in range(len(endings)) for triplet in triplets[number :: len(endings)]]
    assert [t for path in paths for t in load_triplets(path)] == wanted
    assert load_triplets(folder) == load_triplets(str(folder)) == load_triplets([folder]) == wanted
    assert load_triplets([str(path) for path in paths]) == wanted
    backwards = [t for path in reversed(paths) for t in load_triplets(path)]
    assert load_triplets(reversed(paths)) == backwards


def test_a_triplet_of_several_files_is_read_once_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    triplets = collect_triplets(WORLD, WORLD.items(6), encode)
    first = save_triplets(tmp_path / "a.json", triplets[:4])
    with caplog.at_level("WARNING", logger="fq_toolkit"):
        again = triplets[4]._replace(instr_id=triplets[0].instr_id)  # the same name, another path
        save_triplets(tmp_path / "b.json", [triplets[2], again, triplets[3]])
        assert load_triplets(tmp_path) == [*triplets[:4], again]
    assert re.search(
        rf"b\.json: 2 of 3 triplets are in .*a\.json too .* '{triplets[2].instr_id}'", caplog.text
    )
    caplog.clear()
    assert load_triplets(save_triplets(first, [triplets[0]] * 2)) == [triplets[0]] * 2  # as it was written
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("more.npz", b"PK\x03\x04", r"more\.npz is no file of triplets; a folder of triplets holds only"),
        ("more.json.bz2", b"BZh", r"more\.json\.bz2 is no file of triplets"),
        ("config.json", b"{}", r"config\.json holds dict"),
        ("r2r.json", b'[{"path_id": 1, "path": ["a"]}]', r"r2r\.json: item 0 has no field 'instr_id'"),
        ("zip.json", b"PK\x03\x04", r"zip\.json is a zip archive"),
        ("part/x.json", b"[]", r"part is a folder; a folder of triplets holds only"),
    ],
)
def test_another_file_in_a_folder_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    save_triplets(tmp_path / "a.json", collect_triplets(WORLD, WORLD.items(1), encode))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_triplets(tmp_path)


def test_no_file_and_one_file_twice_are_refused(tmp_path: Path) -> None:
    path = save_triplets(tmp_path / "a.json", collect_triplets(WORLD, WORLD.items(1), encode))
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.json").symlink_to(path)
    for source, message in (
        ([], "no file of triplets is given"),
        (tmp_path / "empty", "empty holds no files"),
        ([path, str(path)], r"a\.json is given twice"),
        ([path, tmp_path / "b.json"], r"b\.json is given twice, also as .*a\.json"),
        ([tmp_path / "none"], "none does not exist"),
        (["a\0b"], "cannot read"),
    ):
        with pytest.raises(DataError, match=message):
            load_triplets(source)


def test_each_file_of_a_folder_is_guarded(tmp_path: Path) -> None:
    train, validation = WORLD.items(8, seed=0), WORLD.items(3, seed=1)
    save_triplets(tmp_path / "a.json", collect_triplets(WORLD, train, encode))
    save_triplets(tmp_path / "b.json", collect_triplets(WORLD, validation, encode))
    with pytest.raises(DataError, match=r"b\.json: item '.*' has the path of the held-out item '0_0'"):
        load_triplets(tmp_path, held_out=iter(validation[:1]))
