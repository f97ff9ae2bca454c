"""Training, resume, and what a GAN step does to the dictionaries."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from fq_toolkit import collect_commitment
from fq_toolkit.fqgan.data.datasets import load_digits
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.runs import load_run
from fq_toolkit.fqgan.gan.training import GAN_TRAINER, GANTask, train
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import CheckpointError, ConfigError, DivergedError, RunError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import dry_run
from tests.fqgan.gan.whole_runs import assert_same_state, last_state, rows_without_clock

pytestmark = pytest.mark.usefixtures("small_and_plain")


def make(config: FQGANConfig) -> GANTask:
    return GANTask(config, load_digits(), Accelerator(cpu=True))


def test_a_run_folder_is_complete(tiny: FQGANConfig, tmp_path: Path) -> None:
    result = train(tiny, out=tmp_path / "run")
    names = {"config.json", "metrics.csv", "checkpoints", "samples.png", "curves.png", "evaluation.json"}
    assert {path.name for path in result.run.iterdir()} == names
    assert load_config(FQGANConfig, result.run / "config.json", trainer="fqgan") == tiny
    rows = read_metrics(result.run / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("loss/d", "loss/g", "commitment/d", "commitment/g", "usage/block0", "perplexity/block2"):
        assert all(name in row for row in rows)
    assert result.evaluation is not None
    record = json.loads((result.run / "evaluation.json").read_text())
    assert (
        record["fid"]
        == result.evaluation.fid
        == pytest.approx(rows[-1]["fid[digits-cnn]/generated"], rel=1e-5)
    )
    assert (record["samples"], record["extractor"], record["step"]) == (20, "digits-cnn", 4)


@pytest.mark.parametrize("fq", ["none", "regularize", "straight_through"])
@pytest.mark.parametrize("stop", [1, 2])
def test_resume_is_bit_exact(tiny: FQGANConfig, tmp_path: Path, fq: str, stop: int) -> None:
    """2 n steps at once equal n, a stop, and n more: networks, dictionaries, optimizers, random state."""
    config = dataclasses.replace(tiny, fq=fq, evaluate_every=3, fq_revive=0.5 if fq == "regularize" else 0.0)
    straight = train(config, out=tmp_path / "straight")
    stopped = train(config, out=tmp_path / "stopped", stop_after=stop)
    assert (stopped.step, stopped.evaluation) == (stop, None)
    torch.manual_seed(99)
    resumed = train(resume=tmp_path / "stopped")
    assert resumed.step == 4
    assert_same_state(straight.run, resumed.run)
    assert resumed.evaluation == straight.evaluation
    assert rows_without_clock(straight.run) == rows_without_clock(resumed.run)


def test_training_longer_equals_training_long(tiny: FQGANConfig, tmp_path: Path) -> None:
    straight = train(tiny, out=tmp_path / "straight")
    train(dataclasses.replace(tiny, steps=2), out=tmp_path / "longer")
    train(dataclasses.replace(tiny, steps=4), resume=tmp_path / "longer")
    assert_same_state(straight.run, tmp_path / "longer")
    with pytest.raises(RunError, match="has done 4 steps, more than the 3"):
        train(dataclasses.replace(tiny, steps=3), resume=tmp_path / "longer")


def test_looking_more_often_changes_nothing(tiny: FQGANConfig, tmp_path: Path) -> None:
    train(
        dataclasses.replace(tiny, evaluate_every=1, log_every=1, checkpoint_every=1), out=tmp_path / "often"
    )
    train(dataclasses.replace(tiny, evaluate_every=0, log_every=4, checkpoint_every=0), out=tmp_path / "once")
    assert_same_state(tmp_path / "often", tmp_path / "once", "log")  # means of one step, and of four


def test_runs_of_different_precision_in_one_process_do_not_know_of_each_other(
    tiny: FQGANConfig, tmp_path: Path
) -> None:
    half = dataclasses.replace(tiny, precision="bf16")
    runs = [train(config, out=tmp_path / str(i)).run for i, config in enumerate((tiny, half, tiny, half))]
    assert_same_state(runs[0], runs[2])
    assert_same_state(runs[1], runs[3])
    with pytest.raises(AssertionError):
        assert_same_state(runs[0], runs[1])


def test_seeds_and_modes_differ(tiny: FQGANConfig, tmp_path: Path) -> None:
    runs = {
        "a": tiny,
        "seed": dataclasses.replace(tiny, seed=1),
        "none": dataclasses.replace(tiny, fq="none"),
    }
    weights = []
    for name, config in runs.items():
        train(dataclasses.replace(config, steps=1), out=tmp_path / name)
        weights.append(last_state(tmp_path / name)[0]["task/generator/linear.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_changed_options_are_shown_and_refused(tiny: FQGANConfig, tmp_path: Path) -> None:
    run = train(tiny, out=tmp_path / "run", stop_after=2).run
    before = (run / "config.json").read_text()
    changed = dataclasses.replace(tiny, g_lr=0.5, num_codes=16, log_every=2)
    with pytest.raises(ConfigError) as caught:
        train(changed, resume=run)
    assert "num_codes: 8 -> 16" in str(caught.value)
    assert "g_lr: 0.0004 -> 0.5" in str(caught.value)
    assert "log_every: 1" not in str(caught.value)
    assert (run / "config.json").read_text() == before
    train(dataclasses.replace(tiny, log_every=2), resume=run)
    assert json.loads((run / "config.json").read_text())["log_every"] == 2


def test_a_run_is_not_overwritten(tiny: FQGANConfig, tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "run", stop_after=1)
    with pytest.raises(RunError, match="already holds a run"):
        train(tiny, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="either out or resume"):
        train(tiny, out=tmp_path / "new", resume=tmp_path / "run")


def test_a_truncated_checkpoint(tiny: FQGANConfig, tmp_path: Path) -> None:
    run = train(tiny, out=tmp_path / "run").run
    newest = run / "checkpoints" / "step_00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    for use in (
        lambda: train(resume=run),
        lambda: load_run(run),
        lambda: dry_run(GAN_TRAINER, tiny, resume=run),
    ):
        with pytest.raises(CheckpointError, match=r"1000 bytes instead of .* go on from step 2"):
            use()
    assert load_run(run, checkpoint=2).step == 2


def test_a_full_disk_during_a_save(
    tiny: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saves = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(".safetensors"):
            saves.append(target)
            if len(saves) == 2:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RunError, match=r"step 4 was not saved.*disk is full.*step 2 is intact"):
        train(tiny, out=tmp_path / "run")
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(folder)) == ["step_00000002.json", "step_00000002.safetensors"]
    straight = train(tiny, out=tmp_path / "straight")
    train(resume=tmp_path / "run")
    assert_same_state(straight.run, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    tiny: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    step = GANTask.step

    def interrupted(self: GANTask, index: int) -> dict:
        if index == 2:
            os.kill(os.getpid(), number)
        return step(self, index)

    monkeypatch.setattr(GANTask, "step", interrupted)
    result = train(tiny, out=tmp_path / "run")
    assert (result.step, result.signal, result.evaluation) == (3, number, None)
    assert (tmp_path / "run" / "samples.png").exists()
    monkeypatch.undo()
    straight = train(tiny, out=tmp_path / "straight")
    train(resume=tmp_path / "run")
    assert_same_state(straight.run, tmp_path / "run")


def test_divergence_stops_with_the_last_good_checkpoint(
    tiny: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GANTask.step

    def poisoned(self: GANTask, index: int) -> dict:
        if index == 2:
            with torch.no_grad():
                self.generator.linear.weight[0, 0] = float("nan")
        return step(self, index)

    monkeypatch.setattr(GANTask, "step", poisoned)
    with pytest.raises(DivergedError, match=r"loss/. is not finite at step 3.*checkpoint of step 2"):
        train(tiny, out=tmp_path / "run")
    monkeypatch.undo()
    assert load_run(tmp_path / "run").step == 2


def test_a_passing_nan_costs_the_steps_since_the_last_checkpoint(
    tiny: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, visited = GANTask.step, []

    def poisoned(self: GANTask, index: int) -> dict:
        visited.append(index)
        if index == 2 and visited.count(2) == 1:
            for network in (self.generator, self.discriminator, self.average.model):
                with torch.no_grad():
                    for weight in network.parameters():
                        weight.fill_(torch.nan)
        return step(self, index)

    monkeypatch.setattr(GANTask, "step", poisoned)
    result = train(tiny, out=tmp_path / "run")
    assert result.step == tiny.steps
    assert visited == [0, 1, 2, *range(2, tiny.steps)]
    assert math.isfinite(result.evaluation.fid)
    assert load_run(tmp_path / "run").step == tiny.steps


def codebooks(gan: GANTask) -> list[tuple[int, torch.Tensor]]:
    return [(int(layer.num_updates), layer.codebook.clone()) for layer in gan.quantizers]


@pytest.mark.parametrize("moves", [False, True])
def test_the_dictionaries_move_in_the_right_steps(tiny: FQGANConfig, moves: bool) -> None:
    gan = make(dataclasses.replace(tiny, fq_update_in_generator_step=moves))
    gan._discriminator_step()
    assert [count for count, _ in codebooks(gan)] == [1, 1, 1]  # once for fake and real together
    before = codebooks(gan)
    values = gan._generator_step()
    assert float(values["commitment/g"]) > 0
    for (count, book), (old_count, old_book) in zip(codebooks(gan), before, strict=True):
        assert (count, torch.equal(book, old_book)) == (
            (old_count + 1, False) if moves else (old_count, True)
        )
    assert all(layer.frozen_depth == 0 for layer in gan.quantizers)
    assert all(weight.requires_grad for weight in gan.discriminator.parameters())


def test_d_pays_for_both_halves(tiny: FQGANConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """D's commitment is the mean over fakes plus the mean over reals."""
    gan = make(tiny)
    gan._discriminator_step()  # starts the dictionaries
    seen: list[torch.Tensor] = []
    forward = type(gan.discriminator).forward

    def record(self: Any, *arguments: Any) -> torch.Tensor:
        with collect_commitment(self) as collected:
            forward(self, *arguments)
        seen.extend(loss for losses in collected.per_sample.values() for loss in losses)
        return forward(self, *arguments)

    monkeypatch.setattr(type(gan.discriminator), "forward", record)
    for layer in gan.quantizers:
        layer.frozen_depth += 1  # both passes must see the same dictionary
    gan.discriminator.eval()  # and the same spectral norms
    values = gan._discriminator_step()
    half = tiny.batch_size
    expected = sum(loss[:half].mean() + loss[half:].mean() for loss in seen)
    assert len(seen) == 3
    torch.testing.assert_close(values["commitment/d"], expected.detach())


def test_regularize_leaves_the_scores_alone(tiny: FQGANConfig) -> None:
    a = make(dataclasses.replace(tiny, fq="none"))._discriminator_step()
    b = make(tiny)._discriminator_step()
    assert a["loss/d"] == b["loss/d"]
    assert torch.equal(a["score/real"], b["score/real"])


def test_strength_warms_up(tiny: FQGANConfig) -> None:
    gan = make(dataclasses.replace(tiny, fq="straight_through", fq_warmup=4))
    for step, expected in ((0, 0.0), (1, 0.25), (9, 1.0)):
        gan.step(step)
        assert {layer.strength for layer in gan.quantizers} == {expected}
        assert gan.gauges()["strength/fq"] == expected


def test_commitment_can_be_left_out_of_the_generator(tiny: FQGANConfig) -> None:
    def gradient(config: FQGANConfig) -> torch.Tensor:
        gan = make(config)
        gan._discriminator_step()
        gan._generator_step()
        return gan.generator.linear.weight.grad.clone()

    heavy = dataclasses.replace(tiny, commitment=100.0)
    with_it = gradient(heavy)
    without = gradient(dataclasses.replace(heavy, fq_in_generator_loss=False))
    assert not torch.allclose(with_it, without)


def test_several_discriminator_steps(tiny: FQGANConfig) -> None:
    gan = make(dataclasses.replace(tiny, d_steps=3))
    gan.step(0)
    assert [count for count, _ in codebooks(gan)] == [3, 3, 3]


def test_dry_run_writes_nothing(tiny: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run(GAN_TRAINER, tiny)
    assert "Nothing was written" in text
    assert "s a step" in text
    assert "fq regularize, K 8, after block 0 (4 channels)" in text
    assert list(tmp_path.iterdir()) == []
