"""Whole runs of every family: resume, kills, divergence, several processes, the command line."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fq_toolkit.fqgan.gan import sampling
from fq_toolkit.fqgan.gan.config import FQGANConfig, preset
from fq_toolkit.fqgan.gan.training import GAN_TRAINER, GANTask, train
from fq_toolkit.training.errors import ConfigError, DivergedError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import dry_run
from fq_toolkit.training.storage.checkpoints import Checkpoints
from tests.fqgan.gan.whole_runs import Killed, assert_a_kill_changes_nothing, assert_same_run

pytestmark = pytest.mark.usefixtures("small_and_plain")

SMALL = {
    "steps": 4, "num_codes": 8, "latent_size": 20, "batch_size": 4, "accumulate": 2, "d_steps": 1,
    "eval_samples": 20, "log_every": 1, "checkpoint_every": 2, "evaluate_every": 0, "device": "cpu",
    "extractor": "random-cnn",
}  # fmt: skip
BIGGAN = dataclasses.replace(
    preset("biggan-imagenet64-tiny"), channels=2, image_size=32, attention=16, shared_size=4,
    **{**SMALL, "r1_weight": 1.0, "r1_every": 3},
)  # fmt: skip
STYLEGAN2 = dataclasses.replace(
    preset("stylegan2-ffhq-tiny"), channels=4, image_size=16, fq_layers=(-2, -1), flip=True,
    **{**SMALL, "r1_every": 2, "path_every": 3},
)  # fmt: skip
FAMILIES = {"biggan": BIGGAN, "stylegan2": STYLEGAN2}


@pytest.fixture(autouse=True, scope="module")
def brief_calibration() -> Iterator[None]:
    """Calibrate batch norm on few images: two thousand take longer than such a run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sampling, "CALIBRATION_BATCHES", 1)
    patch.setattr(sampling, "CALIBRATION_SIZE", 20)
    yield
    patch.undo()


@pytest.fixture(params=list(FAMILIES))
def config(request: pytest.FixtureRequest) -> FQGANConfig:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, small_and_plain: None) -> dict[str, Path]:
    """One whole run of each family, to compare with."""
    folder = tmp_path_factory.mktemp("straight")
    return {name: train(config, out=folder / name).run for name, config in FAMILIES.items()}


def test_a_run_is_complete(straight: dict[str, Path], config: FQGANConfig) -> None:
    run = straight[config.family]
    names = {"config.json", "metrics.csv", "checkpoints", "samples.png", "curves.png", "evaluation.json"}
    assert {path.name for path in run.iterdir()} == names
    rows = read_metrics(run / "metrics.csv")
    expected = ["loss/d", "loss/g", "commitment/d", "commitment/g", "penalty/r1"]
    expected += ["penalty/path"] if config.family == "stylegan2" else []
    for row in rows:
        assert all(name in row for name in expected)


def test_resume_is_bit_exact(straight: dict[str, Path], config: FQGANConfig, tmp_path: Path) -> None:
    """Networks, dictionaries, optimizers, penalties and their averages, random state, metrics."""
    run = train(config, out=tmp_path / "run", stop_after=3).run
    torch.manual_seed(99)
    train(resume=run)
    assert_same_run(straight[config.family], run)


def test_a_run_that_dies_goes_on_from_its_checkpoint(
    straight: dict[str, Path], config: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GANTask.step

    def dying(self: GANTask, index: int) -> dict:
        if index == 3:
            raise Killed
        return step(self, index)

    monkeypatch.setattr(GANTask, "step", dying)
    with pytest.raises(Killed):
        train(config, out=tmp_path / "run")
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.csv")] == [1, 2, 3]
    train(resume=tmp_path / "run")
    assert_same_run(straight[config.family], tmp_path / "run")


@pytest.mark.slow
def test_kill_nine_at_a_random_moment(config: FQGANConfig, tmp_path: Path) -> None:
    longer = dataclasses.replace(config, steps=40, checkpoint_every=5, evaluate_every=7)
    assert_a_kill_changes_nothing(GAN_TRAINER.name, longer, tmp_path)


def test_divergence_leaves_the_last_good_checkpoint(
    config: FQGANConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GANTask.step

    def poisoned(self: GANTask, index: int) -> dict:
        if index == 2:
            with torch.no_grad():
                next(self.generator.parameters()).fill_(torch.nan)  # one class alone may not be drawn
        return step(self, index)

    monkeypatch.setattr(GANTask, "step", poisoned)
    with pytest.raises(DivergedError, match=r"is not finite at step 3.*checkpoint of step 2"):
        train(config, out=tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]


@pytest.mark.parametrize("name", ["biggan-cifar10", "stylegan2-ffhq"])
def test_a_full_preset_needs_images(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the preset '{name}' needs images: give --data PATH"):
        dry_run(GAN_TRAINER, preset(name))


def test_images_that_do_not_fit_the_family() -> None:
    config = dataclasses.replace(BIGGAN, image_size=0)  # digits are 16x16
    with pytest.raises(ConfigError, match=r"images are 16x16; BigGAN is defined for 32x32.*--image-size 32"):
        dry_run(GAN_TRAINER, config)


def test_a_folder_of_images(tmp_path: Path) -> None:
    """The whole way from files: a folder of PNGs, cut to the size that the options ask for."""
    from PIL import Image

    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(8):
            pixels = torch.randint(256, (40, 36, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    config = dataclasses.replace(STYLEGAN2, data=str(tmp_path / "images"), steps=1, conditional=True)
    result = train(config, out=tmp_path / "run")
    assert result.evaluation.samples == 20
    assert "random-cnn" in str(result.evaluation)


SCRIPT = """
import dataclasses, json, sys
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.training import GANTask
from fq_toolkit.training.config import from_mapping

draws = torch.Generator().manual_seed(3)
images = torch.rand(32, 1, 32, 32, generator=draws) * 2 - 1
data = ImageDataset("noise", images, torch.arange(32) % 2, 2, "none")
accelerator = Accelerator(cpu=True)
world, rank = accelerator.num_processes, accelerator.process_index
torch.randn_like = torch.ones_like  # drawn in every forward


def train(options):
    config = from_mapping(FQGANConfig, options, source="test")
    config = dataclasses.replace(config, batch_size=8 // world)
    gan = GANTask(config, data, accelerator)
    noise = torch.Generator().manual_seed(4)

    def shared_noise(share=1):  # every process takes its part of the same draws
        count = max(1, config.batch_size // share)
        z = torch.randn(count * world, config.latent_size, generator=noise)
        labels = torch.randint(2, (count * world,), generator=noise)
        part = slice(rank * count, (rank + 1) * count)
        return iter([(z[part], labels[part])])

    gan._noise = shared_noise
    for module in [*gan.generator.modules(), *gan.discriminator.modules()]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    for step in range(3):
        gan.step(step)
    networks = {"g": gan.generator, "d": gan.discriminator}
    states = {key: model.state_dict() for key, model in networks.items()}
    flat = {f"{key}/{name}": value for key, state in states.items() for name, value in state.items()}
    return {name: value for name, value in flat.items() if "running" not in name}


states = [train(options) for options in json.loads(sys.argv[1])]
for other in gather_object([states]):
    for mine, theirs in zip(states, other, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
if accelerator.is_main_process:
    torch.save(states, sys.argv[2])
accelerator.end_training()
"""


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gloo ranks of four samples make the step of one process of eight: dictionaries and weights.

    Noise is shared out, batch norm looks at its stored statistics: those are of a process, not of all.
    """
    script, options = tmp_path / "script.py", []
    script.write_text(SCRIPT)
    for config in FAMILIES.values():
        changed = dataclasses.replace(
            config, accumulate=1, style_mixing=0.0, flip=False, image_size=32, r1_every=1, path_every=1
        )
        options.append(dataclasses.asdict(changed))
    words = [str(script), json.dumps(options)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    child = subprocess.run(
        [*launch, *words, str(tmp_path / "two.pt")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr[-3000:]
    monkeypatch.setattr(torch, "randn_like", torch.randn_like)  # the script replaces it
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "one.pt")])
    runpy.run_path(str(script))
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4, msg=name)
