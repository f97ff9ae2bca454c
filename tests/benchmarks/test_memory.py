"""Peak extra memory is that of the call, not of the process."""

import pytest
import torch

from benchmarks import memory
from benchmarks.contender import Task
from benchmarks.memory import can_measure_cpu, median_peak, peak_in_fresh_process, resident_peak

pytestmark = pytest.mark.skipif(not can_measure_cpu(), reason="no resettable high-water mark of memory")

MIB = 1 << 20


@pytest.mark.parametrize("mebibytes", [0, 8, 64])
def test_the_peak_is_what_one_call_touches(mebibytes):
    peak = resident_peak(
        Task(lambda _: torch.ones(mebibytes * MIB, dtype=torch.uint8).max() if mebibytes else None)
    )
    assert abs(peak - mebibytes * MIB) < 3 * MIB


def test_freed_memory_counts_at_its_peak():
    def run(_):
        for _ in range(3):
            torch.ones(32 * MIB, dtype=torch.uint8)

    assert 31 * MIB < resident_peak(Task(run)) < 36 * MIB


def test_setup_does_not_count():
    task = Task(lambda state: state.max(), setup=lambda: torch.ones(64 * MIB, dtype=torch.uint8))
    assert resident_peak(task) < 3 * MIB


def test_a_fresh_process_answers_with_bytes():
    assert 0 <= peak_in_fresh_process("lookup", "tiny NCHW", "torch.cdist", threads=1) < 8 * MIB


def test_a_fresh_process_answers_with_its_error():
    answer = peak_in_fresh_process("lookup", "tiny NCHW", "flash-kmeans", threads=1)
    assert answer.startswith("Unavailable: flash-kmeans cannot be imported")


@pytest.mark.parametrize(
    ("answers", "median"), [([5], 5), ([9, 1, 5], 5), ([4, 1, 9, 2], 2), ([3, "why not", 4], "why not")]
)
def test_the_median_of_several_processes(monkeypatch, answers, median):
    left = iter(answers)
    monkeypatch.setattr(memory, "peak_in_fresh_process", lambda *_: next(left))
    assert median_peak("lookup", "tiny NCHW", "torch.cdist", 1, probes=len(answers)) == median
