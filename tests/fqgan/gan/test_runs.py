"""A finished run read back: samples, strips, sweeps, a new measurement."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.runs import (
    evaluate_run,
    evaluate_truncations,
    interpolate_run,
    load_run,
    sample_run,
    sweep_truncation,
)
from fq_toolkit.training.errors import CheckpointError, ConfigError, RunError
from tests.fqgan.data.image_data import picture_size

pytestmark = pytest.mark.usefixtures("small_and_plain")


def draw(run: Path, out: Path, **options: Any) -> bytes:
    arguments: dict[str, Any] = {"seed": 0, "rows": 2, "classes": ()} | options
    sample_run(load_run(run), out=out, **arguments)
    return out.read_bytes()


def test_samples_repeat_and_vary(finished: Path, tmp_path: Path) -> None:
    first = draw(finished, tmp_path / "a.png")
    assert draw(finished, tmp_path / "b.png") == first
    assert draw(finished, tmp_path / "c.png", seed=1) != first
    images = tmp_path / "new" / "images"
    draw(finished, tmp_path / "sub" / "d.png", classes=(3, 7), single_images=images)
    names = ["class3_0000.png", "class3_0001.png", "class7_0000.png", "class7_0001.png"]
    assert sorted(path.name for path in images.iterdir()) == names


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda run, tmp: draw(run, tmp / "x.png", classes=(3, 10)),
            ConfigError,
            r"classes \[10\] do not exist",
        ),
        (lambda run, tmp: draw(run, tmp / "x.png", rows=0), ConfigError, "rows is 0"),
        (lambda run, tmp: draw(run, tmp / "x.png", truncation=0.0), ConfigError, "truncation is 0.0"),
        (
            lambda run, tmp: load_run(run, checkpoint=3),
            CheckpointError,
            r"no checkpoint of step 3 .* \[2, 4\]",
        ),
        (lambda run, tmp: load_run(tmp), RunError, "not a run folder"),
        (lambda run, tmp: draw(run, run / "config.json" / "x.png"), RunError, "cannot write"),
    ],
)
def test_wrong_requests(
    finished: Path, tmp_path: Path, use: Callable[[Path, Path], Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        use(finished, tmp_path)


def test_strips_and_sweeps(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    interpolate_run(run, seed=0, rows=3, steps=5, classes=(1, 4), out=tmp_path / "new" / "strips.png")
    assert picture_size(tmp_path / "new" / "strips.png") == (5 * 68 + 4, 3 * 68 + 4)
    sweep_truncation(run, seed=0, truncations=(0.2, 2.0), classes=(1, 4), out=tmp_path / "sweep.png")
    assert picture_size(tmp_path / "sweep.png") == (2 * 68 + 4, 16 + 2 * 68 + 4)
    with pytest.raises(ConfigError, match="a strip has 1 images; expected at least 2"):
        interpolate_run(run, seed=0, rows=3, steps=1, classes=(), out=tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"truncation is -1; expected a positive number"):
        sweep_truncation(run, seed=0, truncations=(-1,), classes=(), out=tmp_path / "x.png")
    found = evaluate_truncations(run, (0.5, 2.0), samples=12, extractor="random-cnn")
    with (finished / "truncations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["truncation"]) for row in rows] == [0.5, 2.0]
    assert [float(row["fid"]) for row in rows] == [figures.fid for figures in found]
    assert {row["extractor"] for row in rows} == {"random-cnn"}


def test_titles_of_columns_are_class_names(finished: Path) -> None:
    from fq_toolkit.fqgan.gan.runs import class_titles

    run = load_run(finished)
    assert class_titles(run, [3, 7]) == ["3", "7"]
    named = run._replace(data=run.data._replace(class_names=("cat", "a very long name")))
    assert class_titles(named, [0, 1]) == ["cat", "1"]
    assert math.isclose(run.seconds, load_run(finished, checkpoint=4).seconds)


def test_evaluating_again_gives_the_same_figures(finished: Path) -> None:
    before = json.loads((finished / "evaluation.json").read_text())
    again = evaluate_run(load_run(finished))
    assert (again.fid, again.accuracy, again.floor) == (before["fid"], before["accuracy"], before["floor"])


def test_a_checkpoint_of_another_model(finished: Path, tmp_path: Path, tiny: FQGANConfig) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    record = json.loads((run / "config.json").read_text()) | {"channels": 8}
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"checkpoint of step 4 .* does not fit"):
        load_run(run)
