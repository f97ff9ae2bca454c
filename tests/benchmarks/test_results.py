"""Results survive a round trip, and files with other columns are refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import over_base, read, write
from tests.benchmarks.rows import ROW, SKIP


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
