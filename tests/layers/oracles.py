"""What the layer is measured against, written down from the published formulas and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(x: Tensor) -> Tensor:
    """Feature vectors in row order: ``(B, C, ...)`` to ``(N, C)``."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def float64_argmin(rows: Tensor, codebook: Tensor) -> Tensor:
    """Lowest argmin of the float64 distances, summed channel by channel as plain double additions."""
    total = torch.zeros(rows.shape[0], codebook.shape[0], dtype=torch.float64)
    for c in range(rows.shape[1]):
        difference = rows[:, c, None].double() - codebook[None, :, c].double()
        total = total + difference * difference
    smallest = total.amin(dim=1, keepdim=True)
    return (total == smallest).to(torch.int8).argmax(dim=1)


class ReleasedOracle:
    """The layer of the PyTorch release, from its formulas, in float64.

    ``n <- l n + (1-l) count``, ``m <- l m + (1-l) sum``, ``E = m / ((n + eps) / (sum n + K eps) * sum n)``.
    """

    def __init__(self, codebook: Tensor, decay: float, commitment: float, eps: float = 1e-5) -> None:
        self.codebook, self.sums = codebook.double().clone(), codebook.double().clone()
        self.counts = torch.zeros(codebook.shape[0], dtype=torch.float64)
        self.decay, self.commitment, self.eps = decay, commitment, eps

    def step(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(N,)``, loss ``(B,)`` and perplexity for features ``(B, C, ...)``, then one update."""
        rows = rows_of(x).double()
        indices = float64_argmin(rows, self.codebook.float())
        quantized = self.codebook[indices]
        loss = self.commitment * (quantized - rows).square().view(x.shape[0], -1).mean(dim=1)
        onehot = torch.nn.functional.one_hot(indices, len(self.counts)).double()
        p = onehot.mean(dim=0)
        perplexity = torch.exp(-(p * torch.log(p + 1e-10)).sum())
        self.counts = self.decay * self.counts + (1 - self.decay) * onehot.sum(dim=0)
        self.sums = self.decay * self.sums + (1 - self.decay) * onehot.t() @ rows
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
        self.codebook = self.sums / smoothed[:, None]
        return indices, loss, perplexity


class ZeroDebiasedOracle:
    """The TensorFlow releases: ``b <- b - (b - value) (1-l)`` from zero, divided by ``1 - l^t``."""

    def __init__(self, codebook: Tensor, decay: float, eps: float = 1e-5) -> None:
        self.codebook = codebook.double().clone()
        self.biased_counts = torch.zeros(codebook.shape[0], dtype=torch.float64)
        self.biased_sums = torch.zeros_like(self.codebook)
        self.decay, self.eps, self.t = decay, eps, 0

    def step(self, x: Tensor) -> Tensor:
        """Indices ``(N,)``, then one update."""
        rows = rows_of(x).double()
        indices = float64_argmin(rows, self.codebook.float())
        onehot = torch.nn.functional.one_hot(indices, len(self.biased_counts)).double()
        self.t += 1
        self.biased_counts -= (self.biased_counts - onehot.sum(dim=0)) * (1 - self.decay)
        self.biased_sums -= (self.biased_sums - onehot.t() @ rows) * (1 - self.decay)
        correction = 1 - self.decay**self.t
        counts, sums = self.biased_counts / correction, self.biased_sums / correction
        total = counts.sum()
        smoothed = (counts + self.eps) / (total + len(counts) * self.eps) * total
        self.codebook = sums / smoothed[:, None]
        return indices
