"""What a quantizer adds to one optimizer step of a discriminator for 32 x 32 images.

The network has the proportions of BigGAN's for CIFAR: four spectrally normalised residual blocks of equal
width, the first two halving the resolution, a projection of the label; the quantizer follows the first block,
at 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.contender import Contender, Task
from benchmarks.quantizer import ours, peers
from benchmarks.quantizer.problem import FeatureProblem, FeatureShape

BARE = "no quantizer"
_CLASSES = 10

#: 16 real and 16 generated images; the quantized map is 16 x 16 with ``dim`` channels.
SHAPE = FeatureShape("BigGAN-32 D, batch 16+16", 32, (16, 16), 256, 1024)
QUICK_SHAPE = FeatureShape("tiny D", 2, (16, 16), 8, 16)


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, *, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = spectral_norm(nn.Conv2d(inputs, width, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.shortcut = (
            spectral_norm(nn.Conv2d(inputs, width, 1)) if inputs != width or halve else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        skip = x
        if self.halve and self.first:  # pooling before the 1 x 1 convolution is cheaper on three channels
            return F.avg_pool2d(hidden, 2) + self.shortcut(F.avg_pool2d(skip, 2))
        skip = self.shortcut(skip)
        return F.avg_pool2d(hidden, 2) + F.avg_pool2d(skip, 2) if self.halve else hidden + skip


class Discriminator(nn.Module):
    """Residual projection discriminator; ``quantize`` maps the first block's features to (features, loss)."""

    def __init__(self, width: int, quantize: Callable[[Tensor], tuple[Tensor, Tensor]] | None) -> None:
        super().__init__()
        self.first = _Block(3, width, first=True, halve=True)
        self.rest = nn.Sequential(
            _Block(width, width, first=False, halve=True),
            _Block(width, width, first=False, halve=False),
            _Block(width, width, first=False, halve=False),
        )
        self.head = spectral_norm(nn.Linear(width, 1))
        self.embed = spectral_norm(nn.Embedding(_CLASSES, width))
        self.quantize = quantize

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, 32, 32) and labels (B,) to scores (B,) and the quantizer's loss."""
        x = self.first(images)
        loss = x.new_zeros(())
        if self.quantize is not None:
            x, loss = self.quantize(x)
        pooled = F.relu(self.rest(x)).sum(dim=(2, 3))
        return self.head(pooled).squeeze(1) + (self.embed(labels) * pooled).sum(dim=1), loss


def _step(factory: peers.LayerFactory | None) -> Callable[[FeatureProblem], Task]:
    def build(problem: FeatureProblem) -> Task:
        torch.manual_seed(0)
        shape = problem.shape
        quantizer, call = factory(problem) if factory else (None, None)
        if quantizer is not None:
            quantizer.train()
        model = Discriminator(shape.dim, call).to(problem.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.0, 0.999))
        half = shape.batch // 2
        images = torch.randn(shape.batch, 3, *(2 * side for side in shape.positions)).to(problem.device)
        labels = (torch.arange(shape.batch) % _CLASSES).to(problem.device)

        def run(_: object) -> Tensor:
            scores, commitment = model(images, labels)
            loss = F.relu(1 - scores[:half]).mean() + F.relu(1 + scores[half:]).mean() + commitment
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Task(run)

    return build


CONTENDERS = (
    Contender(BARE, _step(None), kind="base"),
    Contender(ours.OURS, _step(ours.layer()), kind="ours", package="fq-toolkit"),
    Contender(ours.REGULARIZE, _step(ours.layer(mode="regularize")), kind="ours", package="fq-toolkit"),
    Contender("released layer", _step(peers.released_layer), score_arrays=4.1),
    Contender(
        "lucidrains", _step(peers.lucidrains_layer), package="vector-quantize-pytorch", score_arrays=6.1
    ),
)
