"""What a study of GANs says: sentences, table, picture, and the summary of all settings."""

import dataclasses

import pytest
from rich.console import Console

from benchmarks.studies.fqgan import ARMS
from benchmarks.studies.plot import plot
from benchmarks.studies.report import table, verdicts
from benchmarks.studies.results import (
    ACCURACY,
    DIVERGED,
    FLOOR,
    OTHERS,
    STEP_TIME,
    Figures,
    Row,
)
from benchmarks.studies.setting import BASELINE
from benchmarks.studies.summary import summary
from tests.benchmarks.studies.figures import FID, SETTING, rows_of


def said(rows: list[Row]) -> str:
    return "\n".join(verdicts(Figures(rows, SETTING), baseline=BASELINE))


BASE = {0: 10.0, 1: 20.0, 2: 30.0}


def test_an_interval_that_includes_0_shows_no_difference():
    text = said(rows_of({"none": BASE, "regularize": {0: 11.0, 1: 19.0, 2: 30.5}}))
    assert "The interval includes 0: this shows no difference." in text


@pytest.mark.parametrize(("shift", "word"), [(-5.0, "better"), (5.0, "worse")])
def test_pairing_shows_what_the_spread_of_the_seeds_would_hide(shift, word):
    arm = {seed: value + shift + 0.1 * seed for seed, value in BASE.items()}
    assert f"excludes 0: regularize is {word} here" in said(rows_of({"none": BASE, "regularize": arm}))


def test_a_higher_accuracy_is_better():
    base, arm = {0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.61, 1: 0.7, 2: 0.8}
    assert "regularize is better" in said(rows_of({"none": base, "regularize": arm}, ACCURACY))


def test_what_cannot_be_compared_is_said():
    one = rows_of({"none": {0: 1.0}, "regularize": {0: 2.0}})
    assert "needs at least 2 seeds" in said(one)
    equal = rows_of({"none": {0: 1.0, 1: 2.0}, "regularize": {0: 1.5, 1: 2.5}})
    assert "without a spread, no interval" in said(equal)
    assert "no run of none" in said(rows_of({"regularize": BASE}))
    assert "regularize diverged with seed 4" in said(rows_of({"regularize": {4: 1.0}}, DIVERGED))
    assert "step times are disturbed" in said(rows_of({"none": {0: 1.3}}, OTHERS))


def test_the_table_has_means_differences_and_the_ruler(tmp_path):
    rows = rows_of({"none": BASE, "regularize": {seed: value + 1 + seed for seed, value in BASE.items()}})
    rows += rows_of({"none": dict.fromkeys(BASE, 0.5)}, FLOOR)
    rows += rows_of({"none": dict.fromkeys(BASE, 0.1), "regularize": {0: 0.11, 1: 0.12, 2: 0.11}}, STEP_TIME)
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(table(Figures(rows, SETTING), baseline=BASELINE))
    text = captured.get()
    for part in (FID, "n=20", "floor 0.50", "+2 ", "-0.484 to +4.48", "+13.2 %"):
        assert part in text
    path = tmp_path / "picture.png"
    plot(Figures(rows, SETTING), path, baseline=BASELINE)
    assert path.stat().st_size > 10_000


def test_the_summary_has_a_line_for_each_arm_of_each_setting():
    mnist = dataclasses.replace(SETTING, preset="mnist", options="decay=0.8")
    worse = {seed: value + 1 + 0.1 * seed for seed, value in BASE.items()}
    rows = rows_of({"none": BASE, "regularize": worse})
    rows += rows_of({"none": BASE, "regularize": {0: 0.0, 1: 9.0, 2: 1.0}}, setting=mnist)
    rows += rows_of({"regularize": {0: 0.5, 1: 0.25}}, "usage/block0")
    lines = summary(rows, ("none", "regularize", "straight_through"), baseline=BASELINE).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:6]] == ["none", "regularize"] * 2
    assert "digits; fid[digits-cnn], n 20 |" in lines[2]
    assert "| **+1.10 (+0.85 to +1.35)** |" in lines[3]
    assert "| 38% |" in lines[3]
    assert "mnist, decay=0.8" in lines[4]
    assert "**" not in lines[5]
    assert lines[-1].startswith("Commit abc; 2-core-test, threads: 1;")


def test_the_summary_borrows_the_baseline_and_leaves_out_disturbed_times() -> None:
    changed = dataclasses.replace(SETTING, options="channels=16 num_codes=8 fq_layers=[0]")
    plain = dataclasses.replace(SETTING, options="channels=16")
    other = dataclasses.replace(SETTING, options="channels=8")
    rows = rows_of({"regularize": {seed: value + 2 for seed, value in BASE.items()}}, setting=changed)
    rows += rows_of({"regularize": {0: 1.2}}, STEP_TIME, setting=changed)
    rows += rows_of({"none": {0: 1.0}}, STEP_TIME, setting=plain)
    rows += rows_of({"none": {seed: 0.0 for seed in BASE}}, setting=other)
    rows += rows_of({"none": BASE}, setting=plain)
    line = summary(rows, ARMS, baseline=BASELINE).splitlines()[2]
    assert "| +2.00 |" in line
    assert "| +20.0 % |" in line
    busy = rows_of({"regularize": {0: 1.5}}, OTHERS, setting=changed)
    assert "| disturbed |" in summary(rows + busy, ARMS, baseline=BASELINE).splitlines()[2]
