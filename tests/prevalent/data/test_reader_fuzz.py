"""Damaged navigation files: every reader reads them or raises the documented error, in bounded time."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fq_toolkit.prevalent import DataError, FeatureStore, load_hanna, load_ndh, load_predictions, load_r2r
from fq_toolkit.prevalent.data.triplet_files import read_triplets
from fq_toolkit.prevalent.world.items import NavItem

R2R = {"path_id": 1, "scan": "s", "heading": 0.5, "path": ["a", "b"], "distance": 5.0, "instructions": ["go"]}
NDH = {
    "inst_idx": 1, "scan": "s", "target": "x", "end_panos": ["b"], "planner_path": ["a", "b"],
    "player_path": ["a", "b"], "dialog_history": [{"role": "navigator", "message": "left?"}],
    "start_pano": {"pano": "a", "heading": 0.0, "elevation": 0.0},
}  # fmt: skip
TRIPLET = {
    "instr_id": "1_0", "path": [["s", "a", 3, 0.5, 0.0]], "teacher_actions": [0],
    "teacher_action_emd": [[-1, 90, 90]], "instr_encoding": [2, 5, 3] + [0] * 77,
}  # fmt: skip
PREDICTION = {"instr_id": "1_0", "trajectory": [["a", 0.0, 0.0], ["b", "c"]], "agent_ask": [0, 1]}
ITEM = NavItem("1_0", "s", 0.0, ("a", "b"), ("b",), "go")
READERS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "r2r": (load_r2r, [R2R]),
    "hanna": (load_hanna, [{**R2R, "paths": [["a", "b"], ["a", "c"]]}]),
    "ndh": (load_ndh, [NDH]),
    "triplets": (read_triplets, [TRIPLET]),
    "predictions": (lambda path: load_predictions(path, [ITEM]), [PREDICTION]),
}
ODD = [None, True, -1, 10**400, 1e999, float("nan"), "", "\ud800", "x" * 3000, [], {}, [[]], {"a": []}, 2**63]


def mutate_value(value: Any, dice: random.Random) -> Any:
    """Return a JSON value with one part replaced, dropped or doubled."""
    if isinstance(value, (dict, list)) and value and dice.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = dice.choice(keys), (dict(value) if isinstance(value, dict) else list(value))
        if dice.random() < 0.1:
            del copy[key]
        elif isinstance(copy, list) and dice.random() < 0.1:
            copy.insert(key, copy[key])
        else:
            copy[key] = mutate_value(copy[key], dice)
        return copy
    return dice.choice(ODD)


def mutate_bytes(content: bytes, dice: random.Random) -> bytes:
    """Return bytes with some changed, cut or repeated."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place, kind = dice.randrange(len(changed) or 1), dice.random()
        if kind < 0.6 and changed:
            changed[place] = dice.randrange(256)
        elif kind < 0.8:
            del changed[place:]
        else:
            changed[place:place] = changed[place : place + 9] * dice.randint(1, 50)
    return bytes(changed)


def read_all(read: Callable[[Path], Any], path: Path, contents: list[bytes]) -> None:
    """Read each content; only DataError may come, within seconds."""
    for content in contents:
        path.write_bytes(content)
        start, said = time.perf_counter(), ""
        try:
            read(path)
        except DataError as error:
            said = str(error)
        assert len(said) < 5000
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_damaged_records(tmp_path: Path, reader: str, count: int) -> None:
    read, records = READERS[reader]
    dice = random.Random(reader)
    plain = json.dumps(records).encode()
    contents = [
        json.dumps(mutate_value(records, dice)).encode() if number % 3 else mutate_bytes(plain, dice)
        for number in range(count)
    ]
    read_all(read, tmp_path / "f.json", [plain, b"[" * 10**5, *contents])


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["npz", "tsv", "hdf5"])
def test_damaged_features(tmp_path: Path, kind: str, count: int) -> None:
    rows = np.ones((2, 36, 2), np.float16)
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        FeatureStore([("s", "a"), ("s", "b")], rows).save_npz(path)
    elif kind == "tsv":
        path.write_text("s\ta\t1\t1\t60\t" + "AACAPw==" * 72 + "\n")
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["s_a"], file["s_b"] = rows

    def read(path: Path) -> None:
        store = getattr(FeatureStore, f"from_{kind}")(path)
        store.check(store.keys)

    dice, plain = random.Random(kind), path.read_bytes()
    read_all(read, tmp_path / f"g.{kind}", [mutate_bytes(plain, dice) for _ in range(count)])
