"""The shapes that are measured, and tiny stand-ins for smoke tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

LAYOUTS = ("nchw", "channels_last", "blc")


def describe_sizes(n: int, dim: int, num_codes: int) -> str:
    """``N 32768, D 256, K 1024``; a size of 0 does not apply and is left out."""
    return ", ".join(f"{name} {size}" for name, size in (("N", n), ("D", dim), ("K", num_codes)) if size)


@dataclass(frozen=True)
class Shape:
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

    def with_layout(self, layout: str) -> Shape:
        """The same sizes in another layout, under a name that says so."""
        positions = self.positions if layout != "blc" else (prod(self.positions),)
        return replace(self, name=f"{self.name} {layout}", positions=positions, layout=layout)

    def with_few_rows(self) -> Shape:
        """One sample of the same kind, at most 256 positions: runs the same code with little memory."""
        if self.layout == "blc":
            return replace(self, batch=1, positions=(min(prod(self.positions), 256),))
        return replace(self, batch=1, positions=tuple(min(side, 16) for side in self.positions))


#: The layers named by the papers: FQ-GAN on CIFAR-10, CIFAR-100 and ImageNet 128, StyleGAN2, an image
#: tokenizer, codecs.
SHAPES = (
    Shape("C10 L0", 128, (16, 16), 256, 1024),
    Shape("C100 L0", 128, (16, 16), 256, 64),
    Shape("I128 L0", 128, (64, 64), 64, 1024),
    Shape("I128 L3", 128, (16, 16), 512, 1024),
    Shape("StyleGAN2", 8, (32, 32), 512, 128),
    Shape("VQGAN", 32, (16, 16), 256, 16384),
    Shape("codec", 32, (1500,), 128, 1024, layout="blc"),
    Shape("DAC", 50, (1100,), 8, 1024, layout="blc"),
)
#: For smoke tests: same code paths, milliseconds.
QUICK_SHAPES = (
    Shape("tiny NCHW", 2, (8, 8), 16, 32),
    Shape("tiny BLC", 2, (50,), 7, 20, layout="blc"),
)
#: The shape whose memory and layouts are reported.
REFERENCE_SHAPE = SHAPES[0]


def shapes_named(*names: str) -> tuple[Shape, ...]:
    """The shapes of section "Shapes" by name, in the order given."""
    known = {shape.name: shape for shape in SHAPES}
    return tuple(known[name] for name in names)
