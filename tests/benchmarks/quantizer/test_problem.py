"""The shapes are those of the specification, and the problems built on them agree across layouts."""

import pytest
import torch

from benchmarks.quantizer.problem import LAYOUTS, QUICK_SHAPES, SHAPES, FeatureProblem

SPECIFIED = {
    "C10 L0": (32768, 256, 1024),
    "C100 L0": (32768, 256, 64),
    "I128 L0": (524288, 64, 1024),
    "I128 L3": (32768, 512, 1024),
    "StyleGAN2": (8192, 512, 128),
    "VQGAN": (8192, 256, 16384),
    "codec": (48000, 128, 1024),
    "DAC": (55000, 8, 1024),
}


def test_the_shapes_are_the_specified_ones():
    assert {shape.name: (shape.rows, shape.dim, shape.num_codes) for shape in SHAPES} == SPECIFIED


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_rows(layout):
    problem = FeatureProblem(QUICK_SHAPES[0].with_layout(layout))
    by_row = problem.canonical.permute(0, 2, 3, 1).reshape(-1, problem.shape.dim)
    assert torch.equal(by_row, problem.rows)
    assert torch.equal(problem.rows, FeatureProblem(QUICK_SHAPES[0]).rows)


def test_features_have_the_memory_order_of_their_layout():
    shape = QUICK_SHAPES[0]
    assert FeatureProblem(shape).features.is_contiguous()
    last = FeatureProblem(shape.with_layout("channels_last")).features
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert last.shape == FeatureProblem(shape).features.shape


def test_few_rows_keep_the_sizes_that_choose_the_code():
    for shape in SHAPES:
        small = shape.with_few_rows()
        assert (small.dim, small.num_codes, small.layout) == (shape.dim, shape.num_codes, shape.layout)
        assert small.rows <= 256
