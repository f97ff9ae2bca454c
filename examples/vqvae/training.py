"""The model, its loss and the training step: what this trainer does that no other does.

`TrainingTask` derives checkpoints, resuming, the check of the data and the guard against NaN from `modules`,
`optimizers`, `orders` and `fingerprint`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.vqvae.config import VQVAEConfig
from examples.vqvae.data import Digits, load_digits
from fq_toolkit import FeatureQuantizer, commitment_loss
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights

NAME = "vqvae"


class VQVAE(nn.Module):
    """Encoder, dictionary, decoder: (N, 1, 8, 8) -> (N, 1, 8, 8) through (N, C, 4, 4) codes."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.quantizer = FeatureQuantizer(
            width, config.num_codes, decay=config.decay, commitment=config.commitment
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(width, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the images, reconstructed from codes."""
        return self.decoder(self.quantizer(self.encoder(x)))


class VQVAETask(TrainingTask):
    """A VQ-VAE in training.

    Minimizes |x - D(q)|^2 + beta |E(x) - sg(q)|^2 with q the nearest code of E(x); the dictionary follows by
    its moving average. Source: van den Oord et al. 2017, arXiv 1711.00937, equation 3 and appendix A.1.

    Args:
        config: all options.
        data: the images.
        accelerator: an ``accelerate.Accelerator``.
    """

    trained_on = "the images"
    selection = Selection("error/validation", highest=False)
    last_evaluation: str | None = None

    def __init__(self, config: VQVAEConfig, data: Digits, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        seed_everything(config.seed)
        self.model = VQVAE(config).to(accelerator.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.order = ShuffledIndices(len(data.train), config.batch_size, seed=config.seed)

    @property
    def fingerprint(self) -> str:
        """Return a digest of the training images."""
        return self.data.fingerprint()

    def modules(self) -> dict[str, Any]:
        """Return the model, whose dictionary is part of its state."""
        return {"model": self.model}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the images."""
        return {"order": self.order}

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update."""
        self.model.train()
        x = self.data.train[self.order.next()].to(self.accelerator.device)
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            error = F.mse_loss(self.wrapped(x), x)
            pull = commitment_loss(self.model)
        self.accelerator.backward(error + pull)
        self.optimizer.step()
        return {"error/train": error.detach(), "commitment/train": pull.detach()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measure the reconstructions of images that were not trained on."""
        self.model.eval()
        x = self.data.validation.to(self.accelerator.device)
        error = F.mse_loss(self.model(x), x).item()
        self.last_evaluation = f"error {error:.4f} on {len(x)} validation images"
        return {"error/validation": error}

    def summary(self) -> str:
        """Return one line."""
        return f"{len(self.data.train)} images; {count_weights(self.model):,} weights; {self.where()}"

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        return ["seconds", "error/train", "commitment/train", "error/validation"]

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the validation images."""
        return self.data.measured_on()

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``evaluation.json``."""
        if complete:
            self.write(run, result.evaluation, step=result.step, seconds=result.seconds)

    def write(self, run: RunFolder, figures: dict[str, float], *, step: int, seconds: float) -> None:
        """Write figures of a checkpoint, with what they were measured on."""
        write_evaluation(
            run.evaluation,
            figures,
            step=step,
            seconds=seconds,
            measured_on=self.measured_on(),
            seed=self.config.seed,
        )


def build(config: VQVAEConfig, accelerator: Any) -> VQVAETask:
    """Load the data and build the task."""
    return VQVAETask(config, load_digits(config.data), accelerator)


TRAINER = Trainer(
    name=NAME,
    config_class=VQVAEConfig,
    build=build,
    run_name=lambda config: f"{NAME}-K{config.num_codes}-seed{config.seed}",
)
