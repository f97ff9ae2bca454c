"""A tokenizer: images to a grid of integers and back. Needs nothing but `pip install fq-toolkit`.

    python examples/vq_tokenizer.py --steps 300

The dictionary is looked up in 8 of the encoder's 32 channels with cosine distance, and dead codes restart.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit import FeatureQuantizer


def draw_gradients(batch: int) -> Tensor:
    """Return images of one plane wave each, (batch, 3, 16, 16) in [-1, 1]."""
    axis = torch.linspace(-1, 1, 16)
    angle, phase, frequency = (
        torch.rand(3, batch, 1, 1) * torch.tensor([3.14, 6.28, 6.0])[:, None, None, None]
    )
    wave = torch.sin(
        frequency * (angle.cos() * axis[:, None] + angle.sin() * axis) + phase
    )  # (batch, 16, 16)
    return wave[:, None] * (torch.rand(batch, 3, 1, 1) * 2 - 1)


def main(steps: int = 300, batch: int = 32) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1))
    tokens = FeatureQuantizer(32, 512, codebook_dim=8, metric="cosine", revive=0.1)
    decoder = nn.Sequential(
        nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)
    )
    model = nn.ModuleList([encoder, tokens, decoder])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    for step in range(1, steps + 1):
        x = draw_gradients(batch)
        out = tokens.quantize(encoder(x))
        error = F.mse_loss(decoder(out.quantized), x)
        optimizer.zero_grad(set_to_none=True)
        (error + out.loss.mean()).backward()
        optimizer.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4d}  error {error.item():.4f}  perplexity {out.perplexity.item():.1f}")

    model.eval()
    with torch.no_grad():
        x = draw_gradients(4)
        indices = tokens.quantize(encoder(x)).indices  # (4, 4, 4): sixteen integers per image
        again = decoder(tokens.decode(indices))  # (4, 3, 16, 16), from the integers alone
    print(f"tokens of one image: {indices[0].flatten().tolist()}")
    print(f"error of four new images: {F.mse_loss(again, x).item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
