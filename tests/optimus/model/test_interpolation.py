"""Paths between latents: ends, straight lines, arcs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fq_toolkit.optimus.model.interpolation import analogy_latents, interpolate_latents


def pair(seed: int, size: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, size, generator=source, dtype=torch.float64)
    return a, b


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), size=st.integers(2, 8), steps=st.integers(2, 9),
    kind=st.sampled_from(["linear", "spherical"]),
)  # fmt: skip
def test_the_ends_are_exact_and_the_way_back_is_the_same(seed: int, size: int, steps: int, kind: str) -> None:
    a, b = pair(seed, size)
    path = interpolate_latents(a, b, steps, kind=kind)
    assert path.shape == (steps, size)
    assert torch.equal(path[0], a)
    assert torch.equal(path[-1], b)
    torch.testing.assert_close(path.flip(0), interpolate_latents(b, a, steps, kind=kind))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(2, 8), steps=st.integers(2, 9))
def test_an_arc_keeps_the_length_and_the_angle_grows_evenly(seed: int, size: int, steps: int) -> None:
    a, b = (v / v.norm() * 3 for v in pair(seed, size))
    path = interpolate_latents(a, b, steps, kind="spherical")
    torch.testing.assert_close(path.norm(dim=1), torch.full((steps,), 3.0, dtype=torch.float64))
    angles = [math.acos(min(1.0, float(p @ q) / 9)) for p, q in pairwise(path)]
    np.testing.assert_allclose(angles, angles[0], atol=1e-6)
    assert math.isclose(sum(angles), math.acos(float(a @ b) / 9), abs_tol=1e-6)


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], ids=["parallel", "opposite", "zero"])
def test_where_there_is_no_arc_the_line_is_taken(b: list[float]) -> None:
    a, end = torch.tensor([1.0, 0.0]), torch.tensor(b)
    path = interpolate_latents(a, end, 5, kind="spherical")
    torch.testing.assert_close(path, interpolate_latents(a, end, 5))
    assert bool(path.isfinite().all())


def test_a_line_is_a_line() -> None:
    a, b = pair(0, 3)
    path = interpolate_latents(a, b, 5)
    torch.testing.assert_close(path.diff(dim=0), ((b - a) / 4).expand(4, 3))


def test_analogies_add_up() -> None:
    a, b, c = torch.randn(3, 2, 4)
    torch.testing.assert_close(analogy_latents(a, b, c), b - a + c)
    assert torch.equal(analogy_latents(a, b, c, degree=0.0), c)
    torch.testing.assert_close(analogy_latents(a, b, a), b)


def test_bad_paths_are_refused() -> None:
    a = torch.zeros(3)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        interpolate_latents(a, a, 1)
    with pytest.raises(ValueError, match="kind must be one of 'linear', 'spherical', got 'cubic'"):
        interpolate_latents(a, a, 3, kind="cubic")
    with pytest.raises(ValueError, match=r"two latents \(nz,\), got \(3,\) and \(4,\)"):
        interpolate_latents(a, torch.zeros(4), 3)
