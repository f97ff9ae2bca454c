"""Results survive a round trip, and a new run replaces exactly what it measured anew."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import MEASURED, SKIPPED, Row, merge, over_base, read, write

ROW = Row(
    case="lookup",
    shape="C10 L0",
    n=32768,
    dim=256,
    num_codes=1024,
    layout="nchw",
    dtype="float32",
    contender="FeatureQuantizer",
    kind="ours",
    device="cpu",
    machine="2-core-test",
    threads=2,
    python="3.11.7",
    torch="2.13.0+cpu",
    version="fq-toolkit 0.1.0",
    commit="abc",
    dirty=False,
    date="2026-01-01",
    status=MEASURED,
    gate="green",
    clock="perf_counter",
    rounds=7,
    median_ms=1.5,
    q25_ms=1.25,
    q75_ms=2.0,
    peak_extra_bytes=4096,
    floor_ms=1.0,
    floor_share=0.5,
    wrong_share=0.0,
)
SKIP = replace(
    ROW,
    contender="peer, skipped",
    status=SKIPPED,
    note='too "large", says it',
    **{field.name: None for field in fields(Row) if "None" in str(field.type)},
)


def test_round_trip(tmp_path):
    path = tmp_path / "folder" / "machine.csv"
    write(path, [ROW, SKIP])
    assert read(path) == [ROW, SKIP]
    assert list(path.parent.iterdir()) == [path]


numbers = st.floats(1e-3, 1e5).map(lambda value: float(f"{value:.6g}"))


@given(
    st.text("abc ,\"'|", max_size=9), st.none() | numbers, st.booleans(), st.none() | st.integers(0, 2**40)
)
def test_round_trip_of_any_value(tmp_path_factory, note, number, flag, count):
    path = tmp_path_factory.mktemp("rows") / "m.csv"
    row = replace(ROW, note=note, median_ms=number, dirty=flag, peak_extra_bytes=count)
    write(path, [row])
    assert read(path) == [row]


def test_a_file_from_before_the_paired_ratios(tmp_path):
    path = tmp_path / "m.csv"
    write(path, [ROW])
    lines = path.read_text().splitlines()
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    assert "over_base" not in path.read_text()
    assert read(path) == [ROW]


def test_time_over_the_base_by_rounds_or_by_medians():
    base = replace(ROW, contender="base", kind="base", median_ms=10.0)
    mine = replace(ROW, contender="mine", median_ms=15.0)
    where = (ROW.case, ROW.shape, "mine")
    assert over_base([base, mine], *where) == 1.5
    assert over_base([base, replace(mine, over_base=1.25)], *where) == 1.25
    assert over_base([mine], *where) is None
    assert over_base([base], *where) is None


def test_no_file_is_no_rows(tmp_path):
    assert read(tmp_path / "absent.csv") == []


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("case,shape\nlookup,C10 L0\n")
    with pytest.raises(ValueError, match="measure again"):
        read(path)


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
