"""U-GAT-IT on two processes: the same networks and dictionaries on both, and those of one process."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fq_toolkit.fqgan.ugatit import training as ugatit_training
from tests.fqgan.ugatit.small import TINY

SCRIPT = """
import dataclasses, json, sys
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fq_toolkit.fqgan.ugatit import training as ugatit_training
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset
from fq_toolkit.training.config import from_mapping
from fq_toolkit.training.storage.packing import pack

# In float64 the order of sums makes no visible difference; dictionaries and their losses stay float32.
build = ugatit_training.build_networks
ugatit_training.build_networks = lambda *options: [model.double() for model in build(*options)]
ugatit_training.jitter = lambda images, size: images[:, :, :size, :size]  # processes draw other places
draws = torch.Generator().manual_seed(3)
a, b = (torch.rand(count, 1, 18, 18, generator=draws).double() * 2 - 1 for count in (24, 27))
data = UnpairedDataset("noise", a, b, a, b, "noise")
accelerator = Accelerator(cpu=True)
world = accelerator.num_processes


def train(options):
    config = from_mapping(UGATITConfig, options, source="test")
    config = dataclasses.replace(config, batch_size=config.batch_size // world)
    task = ugatit_training.UGATITTask(config, data, accelerator)
    for module in task.critics.modules():
        if config.accumulate > 1 and type(module).__name__ == "SpectralNorm":
            module.eval()  # it looks at each forward, and forwards are other images when there are two ranks
    for step in range(2):
        task.step(step)
    states = {
        name: getattr(task, name).state_dict()
        for name in ("translators", "critics", "g_optimizer", "d_optimizer")
    }
    rows = [order.next().tolist() for order in task.image_orders]
    return pack(states)[0], rows


results = [train(options) for options in json.loads(sys.argv[1])]
everybodys = gather_object([results])
for mine, *others in zip(*everybodys, strict=True):
    for theirs in others:
        assert all(torch.equal(value, theirs[0][name]) for name, value in mine[0].items())
        assert not any(set(rows) & set(other) for rows, other in zip(mine[1], theirs[1], strict=True))
if accelerator.is_main_process:
    torch.save([tensors for tensors, _ in results], sys.argv[2])
accelerator.end_training()
"""


def train_twice(folder: Path, configs: list[dict[str, Any]]) -> list[list[dict[str, torch.Tensor]]]:
    """Return the states of one process and of two, for each of the options."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    changed = [dataclasses.replace(TINY, batch_size=4, fq_init="normal", **config) for config in configs]
    words = [str(script), json.dumps([dataclasses.asdict(config) for config in changed])]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [*launch, *words, str(folder / "two.pt")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, str(folder / "one.pt")])
        for name in ("jitter", "build_networks"):
            patch.setattr(ugatit_training, name, getattr(ugatit_training, name))  # the script replaces it
        runpy.run_path(str(script))
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "two")]


def assert_same(alone: dict[str, torch.Tensor], together: dict[str, torch.Tensor]) -> None:
    """Compare weights, dictionaries and Adam's moments: equal up to the float32 of the dictionaries."""
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        distance = (together[name].double() - value.double()).norm()
        assert float(distance) <= 1e-5 * float(value.double().norm()), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Two gloo ranks of two images, twice for each update, make the step of one process of four."""
    configs: list[dict[str, Any]] = [
        {"accumulate": 2, "fq_update_per": "update"},
        {"accumulate": 2, "fq_update_per": "update", "fq": "straight_through", "fq_warmup": 0},
    ]
    for alone, together in zip(*train_twice(tmp_path, configs), strict=True):
        assert_same(alone, together)


@pytest.mark.slow
def test_two_processes_equal_one_in_every_mode(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"light": light, "fq": fq, "fq_update_in_generator_step": True, "fq_warmup": 0}
        for light in (True, False)
        for fq in ("none", "regularize", "straight_through")
    ]
    for alone, together in zip(*train_twice(tmp_path, configs), strict=True):
        assert_same(alone, together)
