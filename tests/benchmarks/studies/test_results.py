"""The study's results file: round trips, rows that were cut short, runs of other settings."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import machine_files, read_all
from benchmarks.studies.fqgan import ARMS
from benchmarks.studies.results import (
    ACCURACY,
    DIVERGED,
    Figures,
    Row,
    append,
    read,
)
from tests.benchmarks.studies.figures import FID, SETTING, rows_of


@given(st.sampled_from(ARMS), st.integers(0, 99), st.floats(allow_nan=False, allow_infinity=False))
def test_round_trip(tmp_path_factory, arm, seed, value):
    path = tmp_path_factory.mktemp("study") / "folder" / "study_fqgan-m.csv"
    row = Row(dataclasses.replace(SETTING, dirty=seed % 2 == 0), arm, seed, FID, value, "2026-01-01")
    append(path, [row])
    append(path, [row])
    assert read(path) == [row, row]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_row_that_was_cut_short_is_measured_again(tmp_path, cut):
    path = tmp_path / "study_fqgan-m.csv"
    whole, torn = rows_of({"none": {0: 1.0, 1: 2.0}})
    append(path, [whole, torn])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [whole]
    assert Figures(read(path), SETTING).finished(FID) == {("none", 0)}
    append(path, [torn])
    assert read(path) == [whole, torn]


def test_a_file_with_other_columns_or_a_bad_cell_is_refused(tmp_path):
    path = tmp_path / "study_fqgan-m.csv"
    path.write_text("arm,seed\nnone,0\n")
    with pytest.raises(ValueError, match="move the file away"):
        read(path)
    path.unlink()
    append(path, rows_of({"none": {0: 1.0}}))
    path.write_text(path.read_text().replace(",1.0,", ",one,"))
    with pytest.raises(ValueError, match="line 2"):
        read(path)


@pytest.mark.parametrize(
    "other", [{"steps": 5}, {"commit": "def"}, {"dirty": True}, {"threads": 2}, {"samples": 21}]
)
def test_runs_of_another_setting_do_not_count(other):
    rows = rows_of({"none": {0: 1.0}}, setting=dataclasses.replace(SETTING, **other))
    assert Figures(rows, SETTING).finished(FID) == set()


def test_a_run_without_its_last_row_is_not_finished_and_a_diverged_one_is():
    rows = rows_of({"none": {0: 0.5}}, ACCURACY) + rows_of({"none": {1: 1.0}}, DIVERGED)
    assert Figures(rows, SETTING).finished(FID) == {("none", 1)}


def test_other_results_do_not_read_those_of_a_study(tmp_path):
    append(tmp_path / "study_fqgan-m.csv", rows_of({"none": {0: 1.0}}))
    assert machine_files(tmp_path) == []
    assert read_all(tmp_path) == []
