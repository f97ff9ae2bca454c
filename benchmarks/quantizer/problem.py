"""What the quantizer's cases work on: the layers' shapes and their tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.contender import Problem

LAYOUTS = ("nchw", "channels_last", "blc")


def describe_sizes(n: int, dim: int, num_codes: int) -> str:
    """Return ``N 32768, D 256, K 1024``; a size of 0 does not apply and is left out."""
    return ", ".join(f"{name} {size}" for name, size in (("N", n), ("D", dim), ("K", num_codes)) if size)


@dataclass(frozen=True)
class FeatureShape:
    """Features of one layer: ``batch`` samples with ``positions``, ``dim`` channels, ``num_codes`` codes.

    Layouts: "nchw" (B, C, H, W) contiguous, "channels_last" the same with channels innermost in memory, "blc"
    (B, L, C).
    """

    name: str
    batch: int
    positions: tuple[int, ...]
    dim: int
    num_codes: int
    layout: str = "nchw"

    @property
    def rows(self) -> int:
        """Number of feature vectors N."""
        return self.batch * prod(self.positions)

    @property
    def label(self) -> str:
        """Name and the sizes that apply, for tables: ``C10 L0 (N 32768, D 256, K 1024)``."""
        return f"{self.name} ({describe_sizes(self.rows, self.dim, self.num_codes)})"

    def with_layout(self, layout: str) -> FeatureShape:
        """Return the same sizes in another layout, under a name that says so."""
        positions = self.positions if layout != "blc" else (prod(self.positions),)
        return replace(self, name=f"{self.name} {layout}", positions=positions, layout=layout)

    def with_few_rows(self) -> FeatureShape:
        """Return one sample of the same kind, at most 256 positions: the same code with little memory."""
        if self.layout == "blc":
            return replace(self, batch=1, positions=(min(prod(self.positions), 256),))
        return replace(self, batch=1, positions=tuple(min(side, 16) for side in self.positions))


#: The layers named by the papers: FQ-GAN on CIFAR-10, CIFAR-100 and ImageNet 128, StyleGAN2, an image
#: tokenizer, codecs.
SHAPES = (
    FeatureShape("C10 L0", 128, (16, 16), 256, 1024),
    FeatureShape("C100 L0", 128, (16, 16), 256, 64),
    FeatureShape("I128 L0", 128, (64, 64), 64, 1024),
    FeatureShape("I128 L3", 128, (16, 16), 512, 1024),
    FeatureShape("StyleGAN2", 8, (32, 32), 512, 128),
    FeatureShape("VQGAN", 32, (16, 16), 256, 16384),
    FeatureShape("codec", 32, (1500,), 128, 1024, layout="blc"),
    FeatureShape("DAC", 50, (1100,), 8, 1024, layout="blc"),
)
#: For smoke tests: same code paths, milliseconds.
QUICK_SHAPES = (
    FeatureShape("tiny NCHW", 2, (8, 8), 16, 32),
    FeatureShape("tiny BLC", 2, (50,), 7, 20, layout="blc"),
)
#: The shape whose memory and layouts are reported.
REFERENCE_SHAPE = SHAPES[0]


def shapes_named(*names: str) -> tuple[FeatureShape, ...]:
    """Return some of `SHAPES` by name, in the order given."""
    known = {shape.name: shape for shape in SHAPES}
    return tuple(known[name] for name in names)


@dataclass(frozen=True)
class FeatureProblem(Problem[FeatureShape]):
    """Features after a leaky ReLU, and a dictionary of slightly moved feature rows.

    Such a dictionary resembles a trained one: every code is used, and the nearest code is usually, not
    always, clear.
    """

    seed: ClassVar[int] = 2004_02088

    def _randn(self, *size: int, stream: int) -> Tensor:
        return torch.randn(*size, generator=self.generator(stream))

    def _arranged(self, rows: Tensor) -> Tensor:
        """Arrange (N, D) rows as a tensor of the shape's layout."""
        shape = self.shape
        by_position = rows.view(shape.batch, *shape.positions, shape.dim)
        if shape.layout == "blc":
            return by_position
        channels_first = by_position.movedim(-1, 1)
        return channels_first if shape.layout == "channels_last" else channels_first.contiguous()

    @cached_property
    def rows(self) -> Tensor:
        """(N, D) contiguous features."""
        raw = self._randn(self.shape.rows, self.shape.dim, stream=0)
        return torch.nn.functional.leaky_relu(raw.add_(0.25), 0.2, inplace=True).to(self.device, self.dtype)

    @cached_property
    def codebook(self) -> Tensor:
        """(K, D) float32."""
        count = self.shape.num_codes
        stride = max(1, self.shape.rows // count)
        picked = self.rows[(torch.arange(count) * stride) % self.shape.rows].float()
        return picked + 0.1 * self._randn(count, self.shape.dim, stream=1).to(self.device)

    @cached_property
    def center(self) -> Tensor:
        """(D,) float32, the mean of the codes."""
        return self.codebook.mean(dim=0)

    @cached_property
    def features(self) -> Tensor:
        """The rows in the shape's layout."""
        return self._arranged(self.rows)

    @cached_property
    def grad(self) -> Tensor:
        """A gradient that arrives at the output, in the shape's layout."""
        return self._arranged(
            self._randn(self.shape.rows, self.shape.dim, stream=2).to(self.device, self.dtype)
        )

    @property
    def canonical(self) -> Tensor:
        """The features as the kernels' four-dimensional (batch, channel, position, position) view."""
        x = self.features
        return x.movedim(-1, 1).unsqueeze(2) if self.shape.layout == "blc" else x

    def prepare(self) -> None:
        """Make the inputs, so that they do not count as a call's memory."""
        self.rows, self.codebook, self.features, self.grad  # noqa: B018 - made once, then kept

    def small(self) -> FeatureProblem:
        """Return the same problem on few rows."""
        return FeatureProblem(self.shape.with_few_rows(), self.device, self.dtype)

    @property
    def feature_bytes(self) -> int:
        """Bytes of one array of N x D features."""
        return prod((self.shape.rows, self.shape.dim, torch.empty(0, dtype=self.dtype).element_size()))
