"""A new run replaces exactly what it measured anew, in an order that no history changes."""

from dataclasses import replace

from benchmarks.runner import merge
from tests.benchmarks.rows import ROW, SKIP


def test_a_new_run_replaces_its_whole_group():
    renamed = replace(ROW, contender="old name")
    other_shape, other_threads = replace(ROW, shape="DAC"), replace(ROW, threads=1)
    new = [replace(ROW, median_ms=9.0), SKIP]
    merged = merge([ROW, renamed, other_shape, other_threads], new)
    assert renamed not in merged
    assert ROW not in merged
    assert {other_shape, other_threads, *new} == set(merged)


def test_the_order_does_not_depend_on_the_order_of_runs():
    train, dac = replace(ROW, case="train_step"), replace(ROW, shape="DAC")
    assert (
        merge(merge([], [train]), merge([dac], [ROW]))
        == merge(merge([ROW], [dac]), [train])
        == [ROW, dac, train]
    )


def test_graph_replays_stand_beside_ordinary_calls():
    graph = replace(ROW, clock="cuda graph")
    assert set(merge([ROW], [graph])) == {ROW, graph}
