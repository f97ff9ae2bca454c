"""The error radius covers the rounding of every product format, by an explicit model of that rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.kernels.certificate import LARGEST_DIM, OPERAND_ERROR, certificate, direct_error


def cut(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut float32 values off after `bits` fraction bits: TF32 keeps 10 and may truncate."""
    return (value.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def rounded_product(rows: torch.Tensor, codes: torch.Tensor, dot: str, chunk: int) -> torch.Tensor:
    """<row, code> as the coarse kernel forms it, every operand and every partial sum rounded toward zero."""
    if dot == "ieee":
        terms = [(rows, codes)]
    else:
        high, high_codes = cut(rows, 10), cut(codes, 10)
        terms = [(high, high_codes)]
        if dot == "tf32x3":
            low, low_codes = cut(rows - high, 10), cut(codes - high_codes, 10)
            terms = [(low, high_codes), (high, low_codes), *terms]
    total = torch.zeros(rows.shape[0], codes.shape[0])
    for start in range(0, rows.shape[1], chunk):
        partial = torch.zeros_like(total).double()
        for left, right in terms:
            for channel in range(start, min(start + chunk, rows.shape[1])):
                exact = partial + left[:, channel, None].double() * right[None, :, channel].double()
                nearest = exact.float()
                above = nearest.double().abs() > exact.abs()
                partial = torch.where(above, torch.nextafter(nearest, torch.zeros(())), nearest).double()
        total = total + partial.float()
    return total


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from((1, 2, 7, 33, 70)),
    spread=st.sampled_from((1e-12, 1e-3, 1.0, 1e4)),
    offset=st.sampled_from((0.0, 1.0, 1e3)),
    dot=st.sampled_from(tuple(OPERAND_ERROR)),
    positive=st.booleans(),
)
def test_radius_covers_the_score_error(seed, dim, spread, offset, dot, positive):
    generator = torch.Generator().manual_seed(seed)
    rows, codes = (offset + spread * torch.randn(9, dim, generator=generator) for _ in range(2))
    center = torch.full((dim,), offset) if not positive else torch.zeros(dim)
    near, near_codes = rows - center, codes - center
    bound = certificate(dim, 16, dot)
    norm, norm_codes = (
        (value.square().sum(dim=1) + bound.tiny).sqrt()[:, None] for value in (near, near_codes)
    )
    half = near_codes.square().sum(dim=1)[None] / 2
    score = half - rounded_product(near, near_codes, dot, 16)
    radius = bound.alpha * norm * norm_codes.t() + bound.beta * half + bound.gamma * norm.square()
    radius += bound.tiny * (1 + norm + norm_codes.t())
    wide, wide_codes = rows.double() - center.double(), codes.double() - center.double()
    truth = wide_codes.square().sum(dim=1)[None] / 2 - wide @ wide_codes.t()
    assert ((score.double() - truth).abs() <= radius).all()


def test_formats_are_ordered_and_unknown_ones_refused():
    alphas = [certificate(256, 32, dot).alpha for dot in ("ieee", "tf32x3", "tf32")]
    assert alphas == sorted(alphas)
    with pytest.raises(ValueError, match="known: ieee"):
        certificate(256, 32, "bf16")


def test_shorter_chunks_are_certified_more_tightly():
    assert certificate(1024, 32, "tf32x3").alpha < certificate(1024, 64, "tf32x3").alpha


def test_nothing_is_certified_beyond_the_largest_dimension():
    assert math.isinf(certificate(LARGEST_DIM + 1, 32, "tf32x3").alpha)
    assert certificate(LARGEST_DIM, 32, "tf32x3").alpha < 1


@given(seed=st.integers(0, 2**31), dim=st.integers(1, 300), offset=st.sampled_from((0.0, 1.0, 1e6)))
def test_direct_float32_differences_are_relatively_accurate(seed, dim, offset):
    generator = torch.Generator().manual_seed(seed)
    rows, codes = (offset + torch.randn(5, dim, generator=generator) for _ in range(2))
    truth = (rows.double() - codes.double()).square().sum(dim=1)
    assert ((rows - codes).square().sum(dim=1).double() - truth).abs().le(direct_error(dim) * truth).all()
