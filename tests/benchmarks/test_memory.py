"""Peak extra memory is that of the call, not of the process."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contender import Task
from benchmarks.memory import allocated_peak, can_measure_cpu, peak_in_fresh_process, resident_peak

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


@settings(deadline=None, max_examples=15)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1000)), max_size=12))
def test_tensors_count_to_the_byte(steps):
    """Against a ledger: slot i is given a new tensor of n bytes, which frees the one it had."""

    def run(_):
        slots = {}
        for slot, size in steps:
            slots.pop(slot, None)
            slots[slot] = torch.empty(size, dtype=torch.uint8)

    slots, highest = {}, 0
    for slot, size in steps:
        slots[slot] = size
        highest = max(highest, sum(slots.values()))
    assert allocated_peak(Task(run)) == highest


def test_tensors_from_before_neither_count_nor_make_room():
    def run(state):
        state.clear()
        return torch.empty(5, dtype=torch.uint8)

    held = [torch.empty(3, dtype=torch.uint8)]
    assert allocated_peak(Task(run, setup=lambda: held)) == 5


def test_what_a_backward_pass_allocates_counts():
    leaf = torch.zeros(1000, requires_grad=True)
    assert allocated_peak(Task(lambda _: leaf.exp().sum().backward())) >= 2 * leaf.nbytes
