"""The navigation study: that it runs, goes on, and reports."""

from pathlib import Path

import pytest

from benchmarks.studies.panels import draw
from benchmarks.studies.prevalent import (
    ARMS,
    FINE_TUNING,
    LAST,
    PANELS,
    PRETRAINED,
    PRETRAINING,
    SCRATCH,
    SPEAKER,
    SPEAKING,
    main,
    runs_of,
    table,
)
from benchmarks.studies.results import Figures, Row, Setting, read

SETTING = Setting("mini", 4, 20, "abc", False, "2-core-test", "cpu", 1, "torch")


def rows(arms: dict[str, list[float]], metric: str = "SR unseen") -> list[Row]:
    return [
        Row(SETTING, arm, seed, metric, value, "2026-01-01")
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_the_quick_study_runs_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.csv"
    assert main(["--quick", "--results", str(path), "--arms", "scratch", "pretrained, blind"]) == 0
    found = read(path)
    assert Figures(found, found[0].setting).finished(LAST) == {("scratch", 0), ("pretrained, blind", 0)}
    assert "| scratch |" in capsys.readouterr().out
    assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_the_quick_study_with_a_speaker(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    assert main(["--quick", "--results", str(path)]) == 0
    found = read(path)
    assert Figures(found, found[0].setting).finished(LAST) == {(arm, 0) for arm in ARMS}


def test_a_run_counts_once_its_last_figure_is_there() -> None:
    figures = Figures([*rows({"scratch": [0.1, 0.2]}, LAST), *rows({"pretrained": [0.3]})], SETTING)
    assert figures.finished(LAST) == {("scratch", 0), ("scratch", 1)}


def test_the_arm_with_a_speaker_comes_when_all_others_are_done() -> None:
    assert runs_of((SPEAKER, SCRATCH, PRETRAINED), 2) == [
        *((SCRATCH, 0), (PRETRAINED, 0), (SCRATCH, 1), (PRETRAINED, 1)),
        *((SPEAKER, 0), (SPEAKER, 1)),
    ]


def test_the_table_pairs_by_seed(tmp_path: Path) -> None:
    figures = Figures(rows({"scratch": [0.1, 0.2, 0.3], "pretrained": [0.3, 0.4, 0.5]}), SETTING)
    text = table(figures, tuple(ARMS))
    assert "-20.0 (-20.0 to -20.0)" in text
    assert "| pretrained | 40.0 (15.2 to 64.8) |" in text
    draw(figures, tuple(ARMS), PANELS, tmp_path / "study.png", samples="instructions")
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_all_parts_of_a_study_share_their_worlds() -> None:
    assert PRETRAINING.scans == FINE_TUNING.scans == SPEAKING.scans
    assert PRETRAINING.feature_dim == FINE_TUNING.feature_dim == SPEAKING.feature_dim
    assert FINE_TUNING.train_items == SPEAKING.train_items
