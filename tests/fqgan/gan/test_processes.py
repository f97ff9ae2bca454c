"""Two processes: one dictionary, one set of weights, bit-exact resume."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import dataclasses, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fq_toolkit.fqgan.data import datasets
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.fqgan.gan import training as trainer
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.errors import RunError
from fq_toolkit.training import session
from fq_toolkit.training.storage.packing import pack

extractors.EPOCHS = 1
session.plot_curves = lambda *_, **__: None
folder = Path(sys.argv[1])
config = FQGANConfig(
    fq="regularize", steps=4, num_codes=8, channels=4, latent_size=8, batch_size=8, eval_samples=21,
    log_every=1, checkpoint_every=0, evaluate_every=0, device="cpu",
)
data = datasets.load_digits()
data = data._replace(images=data.images[:300], labels=data.labels[:300])
datasets.DATASETS["digits"] = lambda: data
gan = trainer.GANTask(config, data, Accelerator(cpu=True))
for step in range(2):
    gan.step(step)
assert gan.accelerator.num_processes == 2
networks = {"g": gan.generator.state_dict(), "d": gan.discriminator.state_dict()}
mine = {name: value for name, value in pack(networks)[0].items() if "running" not in name}
books = [name for name in mine if "codebook" in name]
assert len(books) == 3
for other in gather_object([mine]):
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
orders = gather_object([gan.order.next().tolist()])
assert not set(orders[0]) & set(orders[1])

straight = trainer.train(config, out=folder / "straight")
stopped = trainer.train(config, out=folder / "stopped", stop_after=2)
resumed = trainer.train(resume=folder / "stopped")
assert resumed.evaluation == straight.evaluation, (resumed, straight)
assert straight.evaluation.samples == 21
states = [Checkpoints(folder / name / "checkpoints").load().state for name in ("straight", "stopped")]
first, second = ((pack({k: v for k, v in state.items() if k != "seconds"})) for state in states)
assert first[1] == second[1]
assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
assert len(states[0]["rng"]) == 2
assert not torch.equal(states[0]["rng"][0]["torch"], states[0]["rng"][1]["torch"])
gan.accelerator.end_training()
"""


def test_two_processes(tmp_path: Path, brief_extractor: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    child = subprocess.run(
        [*launch, str(script), str(tmp_path / "runs")], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr[-3000:]
