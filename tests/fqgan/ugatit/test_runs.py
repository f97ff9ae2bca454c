"""Whole runs of U-GAT-IT on folders of pictures: signals, kills, resume, divergence, bad data."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fq_toolkit.fqgan.gan import evaluation
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.ugatit.runs import load_translators
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER, UGATITTask
from fq_toolkit.training.errors import ConfigError, DivergedError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import train
from fq_toolkit.training.storage.checkpoints import Checkpoints
from tests.fqgan.gan.whole_runs import Killed, assert_a_kill_changes_nothing, assert_same_run
from tests.fqgan.ugatit.small import TINY, write_domains

pytestmark = pytest.mark.usefixtures("small_and_plain")

OPTIONS: dict[str, dict[str, Any]] = {
    "light": {"light": True, "fq": "regularize", "fq_update_per": "update", "fq_revive": 0.5},
    "full": {"light": False, "fq": "straight_through", "fq_update_in_generator_step": True},
}


@pytest.fixture(autouse=True, scope="module")
def brief_measure() -> Iterator[None]:
    """Compare means only: eigenvalues of 448 features take longer than such a run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluation, "frechet_distance", lambda a, b: float((a.mean - b.mean).norm()))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module", params=list(OPTIONS))
def config(request: pytest.FixtureRequest, domains: Path) -> UGATITConfig:
    return dataclasses.replace(TINY, data=str(domains), accumulate=2, **OPTIONS[request.param])


@pytest.fixture(scope="module")
def straight(config: UGATITConfig, tmp_path_factory: pytest.TempPathFactory, small_and_plain: None) -> Path:
    """One whole run, to compare with."""
    return train(UGATIT_TRAINER, config, out=tmp_path_factory.mktemp("straight") / "run").run


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[UGATITTask], None]) -> None:
    """Let something happen before a step."""
    step = UGATITTask.step

    def acting(self: UGATITTask, index: int) -> dict[str, torch.Tensor]:
        if index == number:
            act(self)
        return step(self, index)

    monkeypatch.setattr(UGATITTask, "step", acting)


def test_a_signal_saves_and_the_run_goes_on_bit_by_bit(
    straight: Path, config: UGATITConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, dictionaries, optimizers, places in both domains, random state, metrics."""
    before_step(monkeypatch, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    stopped = train(UGATIT_TRAINER, config, out=tmp_path / "run")
    monkeypatch.undo()
    assert (stopped.step, stopped.signal, stopped.evaluation) == (3, signal.SIGTERM, None)
    assert Checkpoints(stopped.run / "checkpoints").steps() == [2, 3]
    assert (stopped.run / "samples.png").exists()
    assert not (stopped.run / "evaluation.json").exists()
    torch.manual_seed(99)
    train(UGATIT_TRAINER, resume=stopped.run)
    assert_same_run(straight, stopped.run)


def test_other_options_are_refused(straight: Path, config: UGATITConfig) -> None:
    changed = dataclasses.replace(config, accumulate=1, log_every=7)
    with pytest.raises(ConfigError, match=r"same run:\n  accumulate: 2 -> 1\nLeave them out"):
        train(UGATIT_TRAINER, changed, resume=straight)


def test_a_run_that_dies_goes_on_from_its_checkpoint(
    straight: Path, config: UGATITConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: UGATITTask) -> None:
        raise Killed

    before_step(monkeypatch, 3, die)
    with pytest.raises(Killed):
        train(UGATIT_TRAINER, config, out=tmp_path / "run")
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.csv")] == [1, 2, 3]
    train(UGATIT_TRAINER, resume=tmp_path / "run")
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.slow
def test_kill_nine_at_a_random_moment(config: UGATITConfig, tmp_path: Path) -> None:
    longer = dataclasses.replace(config, steps=40, checkpoint_every=5, evaluate_every=7)
    assert_a_kill_changes_nothing(UGATIT_TRAINER.name, longer, tmp_path)


@pytest.mark.parametrize("network", ["translators", "critics"])
def test_divergence_leaves_the_last_good_checkpoint(
    domains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    def poison(task: UGATITTask) -> None:
        with torch.no_grad():
            list(getattr(task, network).parameters())[-1].view(-1)[-1] = float("nan")
        assert not task.is_finite()

    before_step(monkeypatch, 2, poison)
    with pytest.raises(DivergedError, match=r"is not finite at step 3.*checkpoint of step 2"):
        train(UGATIT_TRAINER, dataclasses.replace(TINY, data=str(domains)), out=tmp_path / "run")
    run = load_translators(tmp_path / "run")
    assert run.step == 2
    assert all(bool(weight.isfinite().all()) for weight in run.translators.parameters())


def without_b(folder: Path) -> None:
    for path in (folder / "trainB").iterdir():
        path.unlink()
    (folder / "trainB").rmdir()


def broken(folder: Path) -> None:
    whole = (folder / "trainB" / "3.png").read_bytes()
    (folder / "trainB" / "3.png").write_bytes(whole[: len(whole) // 2])


def small(folder: Path) -> None:
    for i in range(3, 7):
        (folder / "trainB" / f"{i}.png").unlink()


def little_to_test_on(folder: Path) -> None:
    (folder / "testB" / "0.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_b, r"has the folders testA, testB, trainA; expected trainA and trainB with images in them"),
        (
            broken,
            r"1 image\(s\) cannot be read; repair or remove them, or give --skip-damaged:\n.*trainB.3\.png",
        ),
        (small, r"domain B has 3 training images; expected at least batch_size 2 x accumulate 2"),
        (little_to_test_on, r"domain B has 3 images to test on; expected 4 or more"),
    ],
)
def test_bad_data_is_refused_before_anything_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = write_domains(tmp_path / "domains")
    config = dataclasses.replace(TINY, data=str(folder), accumulate=2)
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        train(UGATIT_TRAINER, config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
