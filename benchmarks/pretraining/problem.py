"""What the pretraining case works on: the released model with a part of its width, and random time steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.contender import Problem
from fq_toolkit.prevalent import PrevalentConfig

LENGTH, VIEWS, ACTIONS = 80, 36, 36
_MASKED = 0.15
#: Words of an instruction: R2R's have 29 on average.
_MEAN, _SPREAD, _LEAST = 31, 11, 8


@dataclass(frozen=True)
class StepShape:
    """``batch`` time steps, and the width of the model; its layers, vocabulary and features keep their ratio.

    The names of the fields that results files have are those of the quantizer's shapes: ``rows`` are time
    steps, ``dim`` is the width, and there are no codes.
    """

    name: str
    batch: int
    width: int
    text_layers: int = 9
    cross_layers: int = 4
    num_codes: int = 0
    layout: str = "steps"

    @property
    def rows(self) -> int:
        """Time steps."""
        return self.batch

    @property
    def dim(self) -> int:
        """Width of the model."""
        return self.width

    @property
    def label(self) -> str:
        """Batch and sizes, for tables."""
        return f"B {self.batch}, width {self.width}, {self.text_layers} + {self.cross_layers} layers"

    def with_few_rows(self) -> StepShape:
        """Return one time step of a small model, which runs the same code with little memory."""
        return replace(self, batch=1, width=64, text_layers=1, cross_layers=1)

    def config(self) -> PrevalentConfig:
        """Return sizes in the released proportions: heads of 64, FFN 4x, vocabulary, features per width."""
        return PrevalentConfig(
            vocab_size=30_522 * self.width // 768,
            hidden_size=self.width,
            num_heads=max(1, self.width // 64),
            text_layers=self.text_layers,
            cross_layers=self.cross_layers,
            intermediate_size=4 * self.width,
            vision_size=2_176 * self.width // 768,
        )


SHAPES = (StepShape("width 192", 8, 192), StepShape("width 384", 8, 384), StepShape("width 576", 8, 576))
QUICK_SHAPES = (StepShape("tiny width 64", 2, 64, text_layers=2, cross_layers=2),)


@dataclass(frozen=True)
class StepProblem(Problem[StepShape]):
    """Features, texts and labels, the same for every contender and every process."""

    seed: ClassVar[int] = 2002_10638

    @cached_property
    def ids(self) -> Tensor:
        """(B, 80) int64: [CLS] words [SEP], padded with 0."""
        generator, count = self.generator(0), self.shape.batch
        lengths = (torch.randn(count, generator=generator) * _SPREAD + _MEAN).round().clamp(_LEAST, LENGTH)
        ids = torch.randint(5, self.shape.config().vocab_size, (count, LENGTH), generator=generator)
        ids[:, 0] = 2
        place = torch.arange(LENGTH)
        ids = torch.where(place == lengths[:, None] - 1, 3, ids)
        return torch.where(place < lengths[:, None], ids, 0).to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """(B, 80) int64: 15 % of the words, -1 elsewhere."""
        chosen = torch.rand(self.ids.shape, generator=self.generator(1)) < _MASKED
        ids = self.ids.cpu()
        return torch.where(chosen & (ids >= 5), ids, -1).to(self.device)

    @cached_property
    def features(self) -> Tensor:
        """(B, 36, F) of the viewpoints, without their angles' part."""
        size = (self.shape.batch, VIEWS, self.shape.config().vision_size - self.angles.shape[2])
        return torch.randn(size, generator=self.generator(2)).to(self.device, self.dtype)

    @cached_property
    def angles(self) -> Tensor:
        """(12, 36, A) angle features from each of 12 headings."""
        width = self.shape.width // 8 // 4 * 4
        return torch.randn(12, VIEWS, width, generator=self.generator(3)).to(self.device, self.dtype)

    @cached_property
    def headings(self) -> Tensor:
        """(B,) int64 headings in steps of 30 degrees."""
        return torch.randint(12, (self.shape.batch,), generator=self.generator(4)).to(self.device)

    @cached_property
    def actions(self) -> Tensor:
        """(B,) int64 labels."""
        return torch.randint(ACTIONS, (self.shape.batch,), generator=self.generator(5)).to(self.device)
