"""The best checkpoint of a run: which one is kept, and what looks at it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fq_toolkit.fqgan.gan import commands as gan_commands
from fq_toolkit.fqgan.gan.runs import load_run
from fq_toolkit.fqgan.gan.training import GANTask, train
from fq_toolkit.fqgan.ugatit import commands as ugatit_commands
from fq_toolkit.fqgan.ugatit.runs import load_translators
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER, UGATITTask
from fq_toolkit.training import session
from fq_toolkit.training.errors import CheckpointError, ConfigError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.storage.checkpoints import Checkpoints
from tests.fqgan.gan.whole_runs import Killed, assert_same_run
from tests.fqgan.ugatit.small import TINY as UGATIT_TINY

pytestmark = pytest.mark.usefixtures("small_and_plain")

FID, KID = "fid[digits-cnn]/generated", "kid[random-cnn]/mean"


def kept(run: Path) -> tuple[list[int], dict[str, Any]]:
    return Checkpoints(run / "checkpoints").steps(), json.loads(
        (run / "checkpoints" / "best.json").read_text()
    )


def pretend(patch: pytest.MonkeyPatch, task: type, column: str, values: list[float]) -> None:
    """Let the figure of each evaluation be one of a list, by the updates done so far."""
    evaluate, step = task.evaluate, task.step  # type: ignore[attr-defined]

    def counted(self: Any, index: int) -> Any:
        self.done = index + 1
        return step(self, index)

    patch.setattr(task, "step", counted)
    patch.setattr(task, "evaluate", lambda self: evaluate(self) | {column: values[self.done - 1]})


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory, small_and_plain: None, tiny: Any) -> Path:
    """Return a run of four steps whose second was the best, of which one more is kept."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, GANTask, FID, [9.0, 3.0, 5.0, 7.0])
        config = dataclasses.replace(tiny, evaluate_every=1, keep_checkpoints=1)
        return train(config, out=tmp_path_factory.mktemp("best") / "run").run


def test_the_checkpoint_with_the_lowest_frechet_distance_is_kept(gan: Path) -> None:
    steps, best = kept(gan)
    assert steps == [2, 4]
    assert best == {"step": 2, "column": FID, "value": 3.0}
    assert load_run(gan, checkpoint="best").step == 2
    assert (
        load_run(gan).step == load_run(gan, checkpoint="last").step == load_run(gan, checkpoint=4).step == 4
    )
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*; there are \[2, 4\]"):
        load_run(gan, checkpoint=3)


@pytest.mark.parametrize(("which", "step"), [("best", 2), ("last", 4), ("2", 2)])
def test_commands_look_at_the_checkpoint_that_is_asked_for(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, step: int
) -> None:
    words = ["--checkpoint", which]
    assert gan_commands.evaluate_command(gan, words) == 0
    title = f"step {step} (best)" if which == "best" else f"step {step}"
    assert capsys.readouterr().out.startswith(f"{title}: fid[digits-cnn] ")
    record = json.loads((gan / "evaluation.json").read_text())
    assert (record["step"], str(record["checkpoint"])) == (step, which)
    assert gan_commands.sample_command(gan, [*words, "--rows", "1", "--out", str(tmp_path / "s.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 's.png'} ({title})\n"
    small = ["--block", "0", "--images", "20", "--codes", "1", "--patches", "1", "--out", str(tmp_path)]
    assert gan_commands.codebook_command(gan, [*words, *small]) == 0


def test_the_pictures_of_two_checkpoints_differ(gan: Path, tmp_path: Path) -> None:
    pictures = []
    for which in ("best", "last", "2"):
        out = tmp_path / f"{which}.png"
        gan_commands.sample_command(gan, ["--rows", "1", "--checkpoint", which, "--out", str(out)])
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]


@pytest.mark.parametrize("which", ["first", "-1", "2.5", ""])
def test_no_checkpoint_is_meant(gan: Path, which: str) -> None:
    for command in (gan_commands.evaluate_command, gan_commands.sample_command):
        with pytest.raises(ConfigError, match="expected best, last or the step of a checkpoint"):
            command(gan, [f"--checkpoint={which}"])


def test_an_older_run_has_no_best(gan: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(gan, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.json").unlink()
    assert load_run(tmp_path / "run").step == 4
    with pytest.raises(CheckpointError, match="does not say which checkpoint is the best"):
        load_run(tmp_path / "run", checkpoint="best")


@pytest.mark.parametrize("dies", [2, 3])
def test_a_kill_around_the_best_changes_nothing(
    gan: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: int
) -> None:
    """Before the best is named, and after it: the run ends with the same checkpoints and the same choice."""
    pretend(monkeypatch, GANTask, FID, [9.0, 3.0, 5.0, 7.0])
    config = dataclasses.replace(tiny, evaluate_every=1, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        if dies == 2:
            mark = Checkpoints.mark_best

            def dying(self: Checkpoints, best: Any) -> None:
                if best.step == 2:
                    raise Killed
                mark(self, best)

            patch.setattr(Checkpoints, "mark_best", dying)
        else:
            step = GANTask.step

            def stopping(self: GANTask, index: int) -> Any:
                if index == dies:
                    raise Killed
                return step(self, index)

            patch.setattr(GANTask, "step", stopping)
        with pytest.raises(Killed):
            train(config, out=tmp_path / "run")
    # The count of updates stands in for weights here, which a resumed task would have from its checkpoint.
    monkeypatch.setattr(
        GANTask, "done", Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1], raising=False
    )
    torch.manual_seed(99)
    train(resume=tmp_path / "run")
    assert_same_run(gan, tmp_path / "run")
    assert kept(gan) == kept(tmp_path / "run")


def test_translators_are_chosen_by_the_mean_kernel_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(UGATIT_TINY, evaluate_every=2, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        pretend(patch, UGATITTask, KID, [9.0, -3.0, 5.0, 7.0])
        run = session.train(UGATIT_TRAINER, config, out=tmp_path / "run").run
    assert kept(run) == ([2, 4], {"step": 2, "column": KID, "value": -3.0})
    assert load_translators(run, checkpoint="best").step == 2
    assert ugatit_commands.evaluate_command(run, ["--checkpoint", "best"]) == 0
    assert capsys.readouterr().out.startswith("step 2 (best):\nA to B: kid[random-cnn] ")
    record = json.loads((run / "evaluation.json").read_text())
    assert (record["step"], record["checkpoint"]) == (2, "best")
    row = read_metrics(run / "metrics.csv")[1]
    kids = [record[direction]["kid"] for direction in ("A to B", "B to A")]
    assert [row[f"kid[random-cnn]/{name}"] for name in ("A to B", "B to A")] == pytest.approx(kids, rel=1e-4)
    samples = run / "samples.png"
    words = [str(samples), "--checkpoint", "best", "--out", str(tmp_path / "out")]
    assert ugatit_commands.translate_command(run, words) == 0


def test_the_mean_of_both_directions_is_a_column(tmp_path: Path) -> None:
    run = session.train(UGATIT_TRAINER, UGATIT_TINY, out=tmp_path / "run").run
    row = read_metrics(run / "metrics.csv")[-1]
    mean = (row["kid[random-cnn]/A to B"] + row["kid[random-cnn]/B to A"]) / 2
    assert math.isclose(row[KID], mean, rel_tol=1e-4)
    assert kept(run)[1]["step"] == 4
