"""U-GAT-IT: its layers against numpy, its networks against published sizes, its training, its commands."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from fq_toolkit.fqgan.data import unpaired
from fq_toolkit.fqgan.data.unpaired import load_unpaired
from fq_toolkit.fqgan.ugatit.config import PRESETS, UGATITConfig, preset
from fq_toolkit.fqgan.ugatit.layers import (
    LIN,
    AdaLIN,
)
from fq_toolkit.fqgan.ugatit.networks import build_networks
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER, UGATITTask
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import train
from tests.fqgan.ugatit.small import TINY


@pytest.fixture(scope="module", autouse=True)
def few_digits() -> Any:
    patch = pytest.MonkeyPatch()
    whole = unpaired.load_digits()
    few = whole._replace(images=whole.images[:200], labels=whole.labels[:200])
    patch.setattr(unpaired, "load_digits", lambda: few)
    yield
    patch.undo()


def count(module: nn.Module) -> float:
    """Return millions of weights, spectral norm's own buffers not counted, as tables give them."""
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)


def test_published_sizes() -> None:
    with torch.device("meta"):
        full, critics = build_networks(dataclasses.replace(preset("u-gat-it"), fq="none"), 3)
        light, _ = build_networks(dataclasses.replace(preset("u-gat-it-light"), fq="none"), 3)
    assert (count(full.a_to_b), count(light.a_to_b)) == (279.0, 10.6)
    assert (count(critics.global_a), count(critics.local_a)) == (53.1, 3.3)


def test_quantizers_sit_where_the_table_says() -> None:
    config = preset("u-gat-it-light")
    assert (config.commitment, config.decay, config.weight_decay, config.cam_weight) == (
        2.0,
        0.85,
        1e-4,
        1000,
    )
    small = dataclasses.replace(config, width=2, image_size=128)
    _, critics = build_networks(small, 3)
    for critic in (critics.global_a, critics.global_b):
        layers = {name: (layer.dim, layer.num_codes) for name, layer in critic.quantizers.items()}
        assert layers == {"1": (4, 64), "2": (8, 128), "3": (16, 128)}
    assert not critics.local_a.quantizers
    seen: list[tuple[int, ...]] = []
    for layer in critics.global_a.quantizers.values():
        layer.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    images = torch.randn(2, 3, 128, 128)
    judgements = critics(images, images)
    assert seen == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert [tuple(j.scores.shape) for j in judgements] == [(2, 1, 2, 2), (2, 1, 14, 14)] * 2
    assert all(j.logits.shape == (2, 2) for j in judgements)
    assert critics.global_a.quantizers["1"] is not critics.global_b.quantizers["1"]


def make(config: UGATITConfig) -> UGATITTask:
    return UGATITTask(config, load_unpaired("digits", size=config.image_size), Accelerator(cpu=True))


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("fq", ["none", "regularize", "straight_through"])
def test_one_step(light: bool, fq: str) -> None:
    task = make(dataclasses.replace(TINY, light=light, fq=fq))
    before = {name: weight.clone() for name, weight in task.translators.named_parameters()}
    codes = [layer.codebook.clone() for layer in task.quantizers.values()]
    values = task.step(0)
    assert all(bool(value.isfinite()) for value in values.values())
    moved = [
        name for name, weight in task.translators.named_parameters() if not torch.equal(weight, before[name])
    ]
    assert len(moved) > 0.9 * len(before)
    assert ("commitment/d" in values) == (fq != "none")
    assert len(task.quantizers) == (4 if fq != "none" else 0)
    assert all(
        not torch.equal(layer.codebook, code)
        for layer, code in zip(task.quantizers.values(), codes, strict=True)
    )
    rhos = [module.rho for module in task.translators.modules() if isinstance(module, (AdaLIN, LIN))]
    assert all(bool(((rho >= 0) & (rho <= 1)).all()) for rho in rhos)
    assert all(weight.requires_grad for weight in task.critics.parameters())


def test_dictionaries_hold_still_in_the_generators_step() -> None:
    task = make(TINY)
    batches = [(torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16))]
    task._critic_step(batches)
    codes = [layer.codebook.clone() for layer in task.quantizers.values()]
    task._generator_step(batches)
    assert all(map(torch.equal, codes, (layer.codebook for layer in task.quantizers.values())))
    moving = make(dataclasses.replace(TINY, fq_update_in_generator_step=True))
    moving._critic_step(batches)
    codes = [layer.codebook.clone() for layer in moving.quantizers.values()]
    moving._generator_step(batches)
    assert not any(map(torch.equal, codes, (layer.codebook for layer in moving.quantizers.values())))


def test_fq_changes_no_other_weight_at_the_start() -> None:
    with_fq, without = make(TINY), make(dataclasses.replace(TINY, fq="none"))
    a, b = with_fq.critics.state_dict(), without.critics.state_dict()
    assert all(torch.equal(a[name], value) for name, value in b.items())
    assert all(".quantizers." in name for name in a.keys() - b.keys())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(UGATIT_TRAINER, TINY, out=run).step == 4
    return run


def test_a_run_folder_is_complete(finished: Path) -> None:
    names = {"config.json", "metrics.csv", "checkpoints", "samples.png", "curves.png", "evaluation.json"}
    assert {path.name for path in finished.iterdir()} == names
    record = json.loads((finished / "evaluation.json").read_text())
    rows = read_metrics(finished / "metrics.csv")
    assert record["A to B"]["extractor"] == "random-cnn"
    assert record["B to A"]["kid"] == pytest.approx(rows[-1]["kid[random-cnn]/B to A"], rel=1e-5)
    assert all("usage/B conv1" in row for row in rows)
    with Image.open(finished / "samples.png") as picture:
        assert picture.size == (8 * 68 + 4, 16 + 4 * 68 + 4)


def test_presets() -> None:
    assert all(name == config.preset for name, config in PRESETS.items())
    with pytest.raises(ConfigError, match="did you mean 'u-gat-it'"):
        preset("ugatit")
    with pytest.raises(ConfigError, match="domain A has 80 training images; expected at least batch_size 81"):
        make(dataclasses.replace(TINY, batch_size=81))
