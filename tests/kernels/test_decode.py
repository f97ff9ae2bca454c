"""One token's attention by the compiled kernel against softmax written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fq_toolkit.kernels import native
from fq_toolkit.kernels.decode import attend_one, can_attend_one, usable

needs_native = pytest.mark.skipif(
    native.problem() is not None, reason=f"the native backend {native.problem()}"
)


def written_out(
    query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """Softmax over slots and text in float64, (B, 1, heads, value_dim)."""
    shared = query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([slot.expand(len(text), -1, -1, -1), text], dim=2).double().repeat_interleave(shared, dim=1)
        for slot, text in zip(slots, (key, value), strict=True)
    )
    weights = (query.double() @ keys.transpose(-1, -2) * scale).softmax(-1)
    return (weights @ values).transpose(1, 2)


def problem(
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    length: int = 7,
    count: int = 1,
    dims: tuple[int, int] = (8, 8),
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Query, key, value and slots from noise."""
    key_dim, value_dim = dims
    return (
        torch.randn(batch, heads, 1, key_dim),
        torch.randn(batch, groups, length, key_dim),
        torch.randn(batch, groups, length, value_dim),
        (torch.randn(batch, groups, count, key_dim), torch.randn(batch, groups, count, value_dim)),
    )


@needs_native
@settings(deadline=None)  # the first call compiles
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    length=st.integers(1, 40),
    count=st.integers(1, 3),
    dims=st.tuples(st.sampled_from([1, 5, 16, 64]), st.sampled_from([3, 16, 64])),
    scale=st.sampled_from([None, 0.05, 3.0]),
    views=st.booleans(),
    one_for_all=st.booleans(),
)
def test_it_is_one_softmax(batch, groups, shared, length, count, dims, scale, views, one_for_all):
    query, key, value, slots = problem(batch, groups * shared, groups, length, count, dims)
    if views:  # as projections come before a cache has copied them
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
        slots = (slots[0][:, :, ::2], slots[1][:, :, ::2])
    if one_for_all:
        slots = (slots[0][:1], slots[1][:1])
    assert can_attend_one(query, key, value, slots)
    got = attend_one(query, key, value, slots, scale=scale)
    scale = dims[0] ** -0.5 if scale is None else scale
    wanted = written_out(query, key, value, slots, scale)
    assert got.shape == (batch, 1, groups * shared, dims[1])
    # The error of a score, a sum of products in float32, is the relative error of its weight.
    longest = max(float(x.norm(dim=-1).max()) for x in (key, slots[0]))
    score = scale * float(query.norm(dim=-1).max()) * longest
    largest = max(float(x.abs().max()) for x in (value, slots[1]))
    assert float((got - wanted).abs().max()) <= (1e-6 + torch.finfo(torch.float32).eps * score) * largest


@needs_native
@pytest.mark.parametrize("gain", [1e-30, 1e4, 1e18])
def test_scores_of_any_size_are_safe(gain):
    query, key, value, slots = problem(dims=(64, 64), length=100)
    key = key * gain
    slots = (slots[0] * gain, slots[1])
    got = attend_one(query, key, value, slots, scale=None)
    torch.testing.assert_close(
        got.double(), written_out(query, key, value, slots, 1 / 8), rtol=1e-3 if gain > 1 else 1e-5, atol=1e-5
    )


@needs_native
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")])
def test_defaults_of_dtype_and_device_change_nothing(default: torch.dtype | torch.device) -> None:
    """The result is of the tensors' own kind: another would be too short for the kernel, or no memory."""
    arguments = problem()
    expected = attend_one(*arguments, scale=None)
    before = torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
            out = attend_one(*arguments, scale=None)
        else:
            with default:
                out = attend_one(*arguments, scale=None)
    finally:
        torch.set_default_dtype(before)
    assert out.dtype is torch.float32
    assert torch.equal(out, expected)


@needs_native
def test_a_nan_stays_in_its_text():
    query, key, value, slots = problem()
    key[0, :, 3] = torch.nan
    got = attend_one(query, key, value, slots, scale=None)
    assert got[0].isnan().all()
    torch.testing.assert_close(got[1:].double(), written_out(query, key, value, slots, 8**-0.5)[1:])


@needs_native
def test_threads_do_not_change_a_bit():
    query, key, value, slots = problem(batch=8, heads=6, groups=6, length=300, dims=(64, 64))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(attend_one(query, key, value, slots, scale=None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@needs_native
def test_what_it_does_not_take(monkeypatch):
    query, key, value, slots = problem()
    assert can_attend_one(query, key, value, slots)
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "reference")
    usable.cache_clear()
    assert not can_attend_one(query, key, value, slots)
    monkeypatch.delenv("FQ_TOOLKIT_BACKEND")
    usable.cache_clear()
    assert not can_attend_one(query.double(), key.double(), value.double(), slots)
    assert not can_attend_one(query, key, value, (slots[0].bfloat16(), slots[1]))
    assert not can_attend_one(query, key, value.transpose(2, 3).contiguous().transpose(2, 3), slots)
    assert not can_attend_one(*(x.to("meta") for x in (query, key, value)), slots)


@needs_native
@pytest.mark.parametrize("which", range(5))
def test_it_leaves_whatever_needs_a_gradient_to_others(which):
    query, key, value, slots = problem()
    given = [query, key, value, *slots]
    given[which].requires_grad_()  # adapters may train values alone, say
    assert not can_attend_one(query, key, value, slots)
    with torch.no_grad():
        assert can_attend_one(query, key, value, slots)


@needs_native
def test_a_trace_sees_the_operations():
    query, key, value, slots = problem()
    found = []
    torch.jit.trace(lambda x: found.append(can_attend_one(x, key, value, slots)) or x * 2, query)
    assert not any(found[:1])
    assert can_attend_one(query, key, value, slots)
