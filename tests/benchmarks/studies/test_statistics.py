"""Intervals and pairing by seed, against scipy and known numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.studies.statistics import differences, overhead, student_interval

values = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(values, values), min_size=2, max_size=12))
def test_the_interval_of_the_differences_is_that_of_a_paired_t_test(pairs):
    base, arm = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = student_interval(list(differences(base, arm).values()))
    if found.sd < 1e-6:
        return  # scipy refuses to divide by no spread
    wanted = stats.ttest_rel(list(arm.values()), list(base.values())).confidence_interval(0.95)
    assert found.low == pytest.approx(wanted.low, rel=1e-9, abs=1e-9)
    assert found.high == pytest.approx(wanted.high, rel=1e-9, abs=1e-9)


def test_the_interval_of_known_numbers():
    # t(0.975, 3 degrees) = 3.182446; the values 1 2 3 4 have sd 1.290994
    found = student_interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.sd == pytest.approx(1.290994, rel=1e-6)
    assert found.high - found.mean == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-6)
    assert not found.includes_zero


def test_one_seed_has_an_interval_without_bounds():
    found = student_interval([3.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.includes_zero
    assert found.spread_is_unknown
    with pytest.raises(ValueError, match="at least one seed"):
        student_interval([])


def test_pairing_is_by_seed():
    base, arm = {3: 10.0, 1: 20.0, 7: 0.0}, {1: 21.0, 2: 5.0, 3: 12.0}
    assert differences(base, arm) == {1: 1.0, 3: 2.0}
    assert overhead(base, {2: 1.0}) is None


def test_the_overhead_is_a_geometric_mean():
    found = overhead({0: 1.0, 1: 1.0}, {0: 2.0, 1: 0.5})
    assert found.mean == pytest.approx(0)
    assert found.low > -1
    assert overhead({0: 1.0, 1: 3.0}, {0: 1.5, 1: 4.5}).mean == pytest.approx(0.5)
