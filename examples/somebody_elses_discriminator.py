"""Dictionaries inside a discriminator that you did not write, and out again without a trace.

    python examples/somebody_elses_discriminator.py

`Critic` stands for an imported model: its code is not touched. It takes a class label and returns a tuple.
"""

import torch
from torch import Tensor, nn

from fq_toolkit import codebook_report, commitment_loss, quantize_discriminator


class Block(nn.Module):
    """Two convolutions with a shortcut; halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, 1, 1)
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.body(x) + self.shortcut(x), 2)


class Critic(nn.Module):
    """A projection discriminator: a score per image, and its features."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 32), Block(32, 64)])
        self.head, self.embed = nn.Linear(64, 1), nn.Embedding(classes, 64)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        h = x.relu().sum((2, 3))
        return self.head(h) + (self.embed(y) * h).sum(1, keepdim=True), h


def main() -> None:
    torch.manual_seed(0)
    D = Critic()
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    before = D(x, y)[0]

    # Released FQ-GAN models use this mode: the features pass untouched and only the commitment loss acts.
    handle = quantize_discriminator(
        D, layers=["blocks.0", "blocks.1"], num_codes=32, example_inputs=(x, y), mode="regularize"
    )
    optimizer = torch.optim.Adam(D.parameters(), 1e-3)
    for _ in range(20):
        score, _ = D(torch.randn(16, 3, 32, 32), y)
        loss = nn.functional.relu(1 - score).mean() + commitment_loss(D)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    print(codebook_report(D))

    with torch.no_grad():
        quantized = D(x, y)[0]
        handle.remove()
        plain = D(x, y)[0]
    print(f"same scores with and without the dictionaries: {torch.equal(quantized, plain)}")
    print(f"the training moved the scores: {not torch.equal(before, plain)}")


if __name__ == "__main__":
    main()
