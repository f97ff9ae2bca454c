"""U-GAT-IT on two processes: the same networks and dictionaries on both."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fq_toolkit.fqgan.ugatit import UGATIT
from fq_toolkit.fqgan.ugatit_config import preset
from fq_toolkit.fqgan.unpaired import load_unpaired
from fq_toolkit.training.packing import pack

config = dataclasses.replace(
    preset("u-gat-it-tiny"), width=4, batch_size=2, num_codes=(4, 4), fq="straight_through", device="cpu"
)
task = UGATIT(config, load_unpaired("digits", size=16), Accelerator(cpu=True))
assert task.accelerator.num_processes == 2
for step in range(2):
    task.step(step)
mine = pack({"g": task.translators.state_dict(), "d": task.critics.state_dict()})[0]
assert sum("codebook" in name for name in mine) == 4
for other in gather_object([mine]):
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
rows = gather_object([task.orders[0].next().tolist()])
assert not set(rows[0]) & set(rows[1])
task.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    child = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
