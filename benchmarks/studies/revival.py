"""Does `revive` help a tokenizer? The autoencoder of `examples/vq_tokenizer.py`, with and without it.

    python -m benchmarks.studies.revival [--steps 600] [--seeds 3]

Images are drawn, so that every step sees new ones and 512 more measure the error. A threshold in rows is
shown beside the share of the mean moving count that is the default.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import machine
from fq_toolkit import FeatureQuantizer

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "revive=0.1 of the mean count": {"revive": 0.1},
    "revive=0.1 rows": {"revive": 0.1, "revive_by": "count"},
    "revive=1.0 rows": {"revive": 1.0, "revive_by": "count"},
}


class Outcome(NamedTuple):
    """What one training gave.

    Attributes:
        error: mean squared error of new images, in [-1, 1] pixels.
        usage: share of the codes that the data uses.
        perplexity: of the codes of the new images.
        restarts: codes that restarted, per step.
    """

    error: float
    usage: float
    perplexity: float
    restarts: float


def draw_waves(batch: int) -> Tensor:
    """Draw images of one plane wave each, ``(batch, 3, 16, 16)`` in [-1, 1]."""
    axis = torch.linspace(-1, 1, 16)
    angle, phase, frequency = (
        torch.rand(3, batch, 1, 1) * torch.tensor([3.14, 6.28, 6.0])[:, None, None, None]
    )
    wave = torch.sin(frequency * (angle.cos() * axis[:, None] + angle.sin() * axis) + phase)
    return wave[:, None] * (torch.rand(batch, 3, 1, 1) * 2 - 1)


def train_tokenizer(options: dict[str, Any], steps: int, seed: int) -> Outcome:
    """Train one autoencoder of 512 codes on 512 rows a step, and measure it on 512 new images."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1))
    tokens = FeatureQuantizer(32, 512, codebook_dim=8, metric="cosine", **options)
    decoder = nn.Sequential(
        nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)
    )
    model = nn.ModuleList([encoder, tokens, decoder])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    restarts = 0
    for _ in range(steps):
        x = draw_waves(32)
        out = tokens.quantize(encoder(x))
        optimizer.zero_grad(set_to_none=True)
        (F.mse_loss(decoder(out.quantized), x) + out.loss.mean()).backward()
        optimizer.step()
        restarts += tokens.restarts()
    model.eval()
    torch.manual_seed(1000 + seed)
    with torch.no_grad():
        x = draw_waves(512)
        out = tokens.quantize(encoder(x))
        error = F.mse_loss(decoder(out.quantized), x).item()
    return Outcome(error, tokens.usage(), out.perplexity.item(), restarts / steps)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Print a table, one row per arm."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.revival",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    revision, dirty = machine.commit()
    state = " with changes" if dirty else ""
    _say(f"{machine.machine_name('cpu')}, commit {revision}{state}, torch {torch.__version__}, one thread")
    _say(f"{chosen.steps} steps, seeds 0 to {chosen.seeds - 1}; mean (and standard deviation) over the seeds")
    _say("| | error | codes in use | perplexity | restarts a step |\n|---|---|---|---|---|")
    for name, options in ARMS.items():
        runs = [train_tokenizer(options, chosen.steps, seed) for seed in range(chosen.seeds)]
        error, usage, perplexity, restarts = (statistics.mean(values) for values in zip(*runs, strict=True))
        spread = statistics.stdev(run.error for run in runs) if len(runs) > 1 else 0.0
        _say(f"| {name} | {error:.4f} ({spread:.4f}) | {usage:.0%} | {perplexity:.0f} | {restarts:.1f} |")


if __name__ == "__main__":
    main()
