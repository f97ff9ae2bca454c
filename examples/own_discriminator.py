"""A small GAN with a dictionary inside its discriminator. Needs nothing but `pip install fq-toolkit`.

    python examples/own_discriminator.py --steps 200

The real images are blurred random strokes made on the fly, so that the script runs anywhere within seconds.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit import FeatureQuantizer, codebook_report, commitment_loss, frozen


def draw_strokes(batch: int) -> Tensor:
    """Return images of one random stroke each, (batch, 1, 16, 16) in [-1, 1]."""
    t = torch.linspace(0, 1, 16)
    start, end = torch.rand(2, batch, 2, 1) * 12 + 2
    points = start + (end - start) * t  # (batch, 2, 16)
    axis = torch.arange(16.0)
    column = torch.exp(-((axis[:, None] - points[:, 0, None]) ** 2) / 2)
    row = torch.exp(-((axis[:, None] - points[:, 1, None]) ** 2) / 2)
    return torch.einsum("bht,bwt->bhw", row, column).clamp(max=1)[:, None] * 2 - 1


def main(steps: int = 200, batch: int = 32) -> None:
    torch.manual_seed(0)
    G = nn.Sequential(
        nn.Linear(32, 64 * 4 * 4), nn.Unflatten(1, (64, 4, 4)), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    D = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        FeatureQuantizer(64, 64, mode="regularize", revive=0.1),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 1),
    )  # fmt: skip
    g_opt = torch.optim.Adam(G.parameters(), 2e-4, betas=(0.0, 0.9))
    d_opt = torch.optim.Adam(D.parameters(), 4e-4, betas=(0.0, 0.9))

    for step in range(1, steps + 1):
        real, fake = draw_strokes(batch), G(torch.randn(batch, 32))
        hinge = F.relu(1 - D(real)).mean() + F.relu(1 + D(fake.detach())).mean()
        d_loss = hinge + commitment_loss(D)  # both calls of D are counted, once
        d_opt.zero_grad(set_to_none=True)
        d_loss.backward()
        d_opt.step()

        with frozen(D):  # the dictionary does not move while G learns
            g_loss = -D(fake).mean() + commitment_loss(D)
        g_opt.zero_grad(set_to_none=True)
        g_loss.backward()
        g_opt.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4d}  d_loss {d_loss.item():.3f}  g_loss {g_loss.item():.3f}")
    print(codebook_report(D))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
