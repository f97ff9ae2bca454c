"""Two gloo ranks equal one process on the concatenated batch, and no rank ever waits for another in vain."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.layers.codebook import distributed_worker as worker

CASES = [
    "data", "kmeans", "normal", "debiased", "cosine", "revive", "update_every", "manual", "masked rank",
    "empty rank",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything once, on two ranks; each test reads its part."""
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker.run_cases, args=(str(path), CASES, True), nprocs=2)
    return path


def results(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return torch.load(folder / f"{name}-0.pt"), torch.load(folder / f"{name}-1.pt")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(folder: Path, case: str) -> None:
    first, second = results(folder, case)
    alone = worker.train(worker.build(case), case, None)
    for name, expected in alone.items():
        if name != "loss" or case not in ("update_every", "manual"):  # those report what the last forward saw
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6, msg=name)
    assert int(first["num_updates"]) == (2 if case in ("update_every", "manual") else worker.STEPS)


def test_number_of_all_reduces(folder: Path) -> None:
    first, second = results(folder, "counts")
    assert first["plain"] == 2
    assert first["coalesced"] == 1
    assert first["manual"] == 1
    assert first["eval"] == 0
    for name in ("plain", "coalesced", "manual"):
        assert torch.equal(first[f"{name} codebook"], second[f"{name} codebook"])
    assert torch.equal(first["plain codebook"], first["coalesced codebook"])
    assert torch.equal(first["plain codebook"], first["manual codebook"])


@pytest.mark.parametrize("broadcast", [True, False])
def test_inside_distributed_data_parallel(folder: Path, broadcast: bool) -> None:
    first, second = results(folder, "ddp")
    assert torch.isfinite(first[f"broadcast {broadcast}"]).all()
    assert torch.equal(first[f"broadcast {broadcast}"], second[f"broadcast {broadcast}"])
    assert torch.equal(first["broadcast True"], first["broadcast False"])


@pytest.mark.parametrize("policy", ["manual", "update_every"])
def test_broadcast_buffers_leave_waiting_statistics_alone(folder: Path, policy: str) -> None:
    first, second = results(folder, "accumulate")
    assert torch.equal(first[policy], second[policy])
    torch.testing.assert_close(first[policy], worker.accumulate(policy, None), rtol=1e-5, atol=1e-6)


def test_a_rank_without_a_forward_joins_a_manual_commit(folder: Path) -> None:
    first, second = results(folder, "idle")
    assert int(first["num_updates"]) == 1
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_fsdp_leaves_the_dictionary_whole_and_float32(folder: Path) -> None:
    first, second = results(folder, "fsdp")
    assert first["codebook"].dtype == torch.float32
    assert first["codebook"].shape == (7, 3)
    assert int(first["num_updates"]) == 2
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("entry", worker.ENTRIES)
def test_dictionaries_move_whatever_part_of_the_model_is_called(folder: Path, entry: str, every: int) -> None:
    first, second = (found[f"{entry} {every}"] for found in results(folder, "entries"))
    alone = worker.through(entry, None, update_every=every)
    calls = 2 if entry in ("twice", "both halves", "stops") else 1
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6, msg=name)
        if name.endswith("num_updates"):
            assert int(first[name]) == 4 * calls // every


def test_a_wrapped_part_moves_too(folder: Path) -> None:
    first, second = (found["wrapped"] for found in results(folder, "entries"))
    for name, expected in worker.through("a part", None).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_uneven_inputs_are_an_error_on_every_rank(folder: Path) -> None:
    for found in results(folder, "join"):
        assert "run out of inputs under DistributedDataParallel.join()" in found["message"]
