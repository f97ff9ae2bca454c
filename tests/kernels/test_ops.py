"""The ops against their definition, for the backends that run on CPU tensors."""

from importlib.metadata import PackageNotFoundError

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fq_toolkit.kernels import native, ops, reference

BACKENDS = ["reference", "native"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = ["nchw", "channels_last", "sliced", "rows", "broadcast"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Run the ops on one backend."""
    if request.param == "native" and native.problem():
        pytest.skip(f"the native backend {native.problem()}")
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", request.param)
    return request.param


def make_features(layout: str, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features of the given layout, with no copy to tidy it up."""
    if layout == "rows":
        return torch.randn(70, channels, dtype=torch.float32).to(dtype)[:, :, None, None]
    if layout == "sliced":
        return torch.randn(3, channels, 5, 40).to(dtype)[:, :, 1:, ::2]
    if layout == "broadcast":
        return torch.randn(3, channels, 1, 1).to(dtype).expand(3, channels, 2, 4)
    x = torch.randn(3, channels, 5, 9).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def brute_force(x: Tensor, codebook: Tensor) -> Tensor:
    """The definition of the index, with no coarse pass to trust."""
    return reference.direct_distances(as_rows(x), codebook).argmin(dim=1)


def forward(x, codebook, center=None, mask=None, strength=1.0, exact=True):
    center = codebook.mean(dim=0) if center is None else center
    return ops.quantize_forward(x, codebook, center, mask, strength, True, True, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 48, 65])
@pytest.mark.parametrize("num_codes", [1, 2, 7, 65])
def test_every_result_follows_from_the_definition(backend, layout, dtype, channels, num_codes):
    x, codebook = make_features(layout, channels, dtype), torch.randn(num_codes, channels)
    out, indices, sq_error, counts, sums = forward(x, codebook)
    expected = brute_force(x, codebook)
    rows, quantized = as_rows(x).double(), codebook[expected].double()
    assert torch.equal(indices.long(), expected)
    assert torch.equal(as_rows(out), codebook[expected].to(dtype))
    assert out.stride() == torch.empty_like(x).stride()
    assert torch.equal(counts, torch.bincount(expected, minlength=num_codes))
    torch.testing.assert_close(
        sq_error.double(), (rows - quantized).square().sum(1).view(len(x), -1).sum(1), rtol=1e-6, atol=0
    )
    one_hot = torch.nn.functional.one_hot(expected, num_codes).double()
    torch.testing.assert_close(sums.double(), one_hot.t() @ rows, rtol=1e-6, atol=1e-6)


HARD_SETS = {
    "offset 30": (1.0, 30.0),
    "offset 1000": (1.0, 1000.0),
    "spread 1e-3 around 1": (1e-3, 1.0),
    "scale 1e-12": (1e-12, 0.0),
    "scale 1e15": (1e15, 0.0),
    "scale 1e30, where float32 scores overflow": (1e30, 0.0),
    "scale 1e-30, where float32 scores underflow": (1e-30, 0.0),
}


@pytest.mark.parametrize("center", ["mean", "zero", "wrong"])
@pytest.mark.parametrize("name", HARD_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_are_exact_on_hard_sets(backend, name, dtype, center):
    spread, offset = HARD_SETS[name]
    if dtype == torch.float16 and spread not in (1.0, 1e-3):
        pytest.skip("outside the range of float16")
    codebook = torch.randn(100, 32) * spread + offset
    codebook[50:60] = codebook[:10]  # duplicates: the first must win
    x = (codebook[torch.randint(100, (4 * 64,))] + 0.3 * spread * torch.randn(256, 32)).view(4, 64, 32, 1)
    x = x.transpose(1, 2).to(dtype)
    origin = {"mean": codebook.mean(0), "zero": torch.zeros(32), "wrong": torch.full((32,), -7.0)}[center]
    assert torch.equal(forward(x, codebook, origin)[1].long(), brute_force(x, codebook))


def test_float64_beyond_the_range_of_float32(backend):
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64) * 1e100
    codebook = torch.randn(9, 8)
    assert torch.equal(forward(x, codebook)[1].long(), brute_force(x, codebook))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-2, 2), min_size=24, max_size=24),
    codes=st.lists(st.integers(-2, 2), min_size=30, max_size=30),
)
@pytest.mark.parametrize("name", BACKENDS)
def test_ties_go_to_the_lowest_index(name, values, codes):
    """On a small integer grid ties are everywhere and every distance is exact."""
    run = native.quantize_forward if name == "native" else reference.quantize_forward
    if name == "native" and native.problem():
        pytest.skip(f"the native backend {native.problem()}")
    x = torch.tensor(values, dtype=torch.float32).view(8, 3, 1, 1)
    codebook = torch.tensor(codes, dtype=torch.float32).view(10, 3)
    indices = run(x, codebook, torch.zeros(3), None, 1.0, True, True, True)[1]
    assert torch.equal(indices.long(), brute_force(x, codebook))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "rows"])
def test_a_bad_row_is_left_alone_and_changes_nothing_else(backend, layout, bad):
    x, codebook = make_features(layout, 6), torch.randn(11, 6)
    clean = forward(x, codebook)
    dirty_x = x.clone()
    dirty_x[0, 2, 0, 0] = bad
    out, indices, sq_error, counts, sums = forward(dirty_x, codebook)
    assert indices[0] == reference.NONFINITE_ROW
    assert torch.equal(indices[1:], clean[1][1:])
    assert torch.equal(as_rows(out)[1:], as_rows(clean[0])[1:])
    torch.testing.assert_close(as_rows(out)[0], as_rows(dirty_x)[0], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(sq_error[1:], clean[2][1:])
    assert torch.isfinite(sq_error).all()
    assert torch.isfinite(sums).all()
    assert counts.sum() == clean[3].sum() - 1


def test_masked_rows_may_hold_anything(backend):
    x, codebook = make_features("nchw", 6), torch.randn(11, 6)
    mask = torch.rand(x.numel() // 6) > 0.4
    filled = torch.where(mask.view(3, 1, 5, 9), x, float("nan"))
    _, indices, sq_error, counts, sums = forward(filled, codebook, mask=mask)
    kept = as_rows(x)[mask]
    assert (indices[~mask] == reference.MASKED_ROW).all()
    assert torch.equal(indices[mask].long(), brute_force(x, codebook)[mask])
    assert counts.sum() == mask.sum()
    torch.testing.assert_close(sums.sum(0), kept.sum(0), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(sq_error).all()


def test_bad_codes_never_win(backend):
    x, codebook = make_features("nchw", 6), torch.randn(11, 6)
    codebook[0, 3], codebook[4, 1] = float("nan"), float("inf")
    live = torch.tensor([k for k in range(11) if k not in (0, 4)])
    indices = forward(x, codebook, torch.zeros(6))[1]
    assert torch.equal(indices.long(), live[brute_force(x, codebook[live])])
    codebook[:] = float("nan")
    out, indices, *_ = forward(x, codebook, torch.zeros(6))
    assert (indices == reference.NONFINITE_ROW).all()
    assert torch.equal(out, x)


def test_no_rows(backend):
    codebook = torch.randn(5, 4)
    out, indices, sq_error, counts, sums = forward(torch.zeros(0, 4, 3, 3), codebook)
    assert out.shape == (0, 4, 3, 3)
    assert indices.numel() == sq_error.numel() == 0
    assert counts.sum() == 0
    assert not sums.any()
    x = torch.zeros(0, 4, 3, 3)
    assert ops.quantize_backward(x, torch.zeros(0), x, codebook, indices).shape == x.shape


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_blends(backend, strength):
    x, codebook = make_features("nchw", 6), torch.randn(11, 6)
    out = forward(x, codebook, strength=strength)[0]
    quantized = forward(x, codebook)[0]
    torch.testing.assert_close(out, torch.lerp(x, quantized, strength))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "rows"])
def test_splitting_the_batch_changes_no_bit(backend, layout):
    x, codebook = make_features(layout, 37), torch.randn(19, 37)
    whole = forward(x, codebook, strength=0.7)
    parts = [forward(part, codebook, strength=0.7) for part in x.split(1 if len(x) < 10 else 13)]
    for position in (0, 1, 2):
        assert torch.equal(whole[position], torch.cat([part[position] for part in parts]))


def test_threads_and_repeats_change_no_bit(backend):
    x, codebook = torch.randn(8, 40, 16, 16), torch.randn(100, 40)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in [1, 2, 3, 4] * 5:
            torch.set_num_threads(threads)
            results.append(forward(x, codebook))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_follows_its_formula(backend, layout, dtype):
    x, codebook = make_features(layout, 19, dtype), torch.randn(7, 19)
    x = x.clone(memory_format=torch.preserve_format) if layout == "broadcast" else x
    x[0, 0, 0, 0] = float("nan")
    indices = forward(x, codebook)[1]
    grad_out, grad_error = torch.randn(x.shape).to(dtype), torch.randn(len(x))
    index = indices.view(len(x), 1, *x.shape[2:])
    residual = x.double() - codebook[indices.clamp(min=0).long()].view(len(x), *x.shape[2:], 19).permute(
        0, 3, 1, 2
    )
    pull = torch.where(index >= 0, 2 * grad_error.view(-1, 1, 1, 1) * residual, 0.0)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype in (torch.float32, torch.float64) else {}
    for gradient in (grad_out, grad_out[:, :1, :1, :1].expand_as(x)):
        expected = (gradient.double() + pull).to(dtype)
        torch.testing.assert_close(
            ops.quantize_backward(gradient, grad_error, x, codebook, indices), expected, **tolerance
        )
    alone = ops.quantize_backward(x.new_empty(0), grad_error, x, codebook, indices)
    torch.testing.assert_close(alone, pull.to(dtype), **tolerance)


def test_gradients_to_second_order(backend):
    codebook = torch.randn(7, 5)

    def error(x):
        return ops.quantize_forward(x, codebook, codebook.mean(0), None, 1.0, True, False, True)[2]

    # The error leaves in float32, so finite differences need a wide step; it is quadratic, so a wide step is
    # exact as long as no index changes: start close to the codes.
    x = (codebook[torch.tensor([0, 2, 3, 5, 6, 1])] + 0.01 * torch.randn(6, 5)).double().view(3, 2, 5, 1)
    x = x.transpose(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(error, (x,), eps=1e-2, atol=1e-2, rtol=1e-2)
    first = torch.autograd.grad(error(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x)[0]
    torch.testing.assert_close(second, 4 * first.detach())  # d/dx |2(x - q)|^2 = 4 * 2(x - q)


def test_output_gradient_passes_straight_through(backend):
    x = torch.randn(3, 5, 2, 2, requires_grad=True)
    gradient = torch.randn(3, 5, 2, 2)
    out = ops.quantize_forward(x, torch.randn(7, 5), torch.zeros(5), None, 0.3, True, False, True)[0]
    assert torch.equal(torch.autograd.grad(out, x, gradient)[0], gradient)


def test_opcheck(backend):
    x, codebook = torch.randn(3, 5, 2, 4, requires_grad=True), torch.randn(7, 5)
    center = codebook.mean(0)
    torch.library.opcheck(ops._quantize_forward, (x, codebook, center, None, None, True, True, True))
    torch.library.opcheck(
        ops._quantize_forward,
        (x, codebook, center, torch.ones(24) > 0, torch.tensor(0.5), False, False, False),
    )
    indices = forward(x, codebook)[1]
    torch.library.opcheck(ops._quantize_backward, (torch.randn_like(x), torch.randn(3), x, codebook, indices))
    state = (codebook.clone(), torch.ones(7), codebook.clone(), center.clone(), torch.tensor(0))
    torch.library.opcheck(ops.ema_commit_, (*state, torch.ones(7), codebook, 0.9, 1e-5, True))


def test_traceable_form_agrees():
    x, codebook = make_features("nchw", 6), torch.randn(11, 6)
    x[0, 0, 0, 0] = float("nan")
    mask = torch.rand(x.numel() // 6) > 0.3
    arguments = (x, codebook, codebook.mean(0), mask, 0.5, True, True, True)
    for ours, expected in zip(
        reference.quantize_forward_traceable(*arguments), reference.quantize_forward(*arguments), strict=True
    ):
        torch.testing.assert_close(ours, expected, equal_nan=True)


def commit(counts, sums, *, decay=0.9, debias=False, steps=1):
    """Some commits from a fixed start; returns codebook, counts, sums, center and the number of updates."""
    generator = torch.Generator().manual_seed(3)
    codebook = torch.randn(4, 3, generator=generator)
    state = (codebook, torch.ones(4), codebook.clone(), torch.zeros(3), torch.tensor(0))
    for _ in range(steps):
        ops.ema_commit_(*state, counts, sums, decay, 1e-5, debias)
    return state


def test_commit_follows_the_released_formula(backend):
    counts, sums = torch.tensor([3, 0, 1, 4]), torch.randn(4, 3)
    codebook, ema_counts, ema_sums, center, updates = commit(counts, sums, steps=3)
    start = commit(counts, sums, steps=0)
    n, m, mu = start[1], start[2], start[3]
    for _ in range(3):
        n, m = 0.9 * n + 0.1 * counts, 0.9 * m + 0.1 * sums
        mu = 0.9 * mu + 0.1 * sums.sum(0) / 8
    smoothed = (n + 1e-5) / (n.sum() + 4 * 1e-5) * n.sum()
    torch.testing.assert_close(ema_counts, n)
    torch.testing.assert_close(ema_sums, m)
    torch.testing.assert_close(codebook, m / smoothed[:, None])
    torch.testing.assert_close(center, mu)
    assert updates == 3


def test_debiased_commit_starts_at_the_batch_means(backend):
    counts, sums = torch.tensor([3, 0, 1, 4]), torch.randn(4, 3)
    sums[1] = 0
    zero = (torch.randn(4, 3), torch.zeros(4), torch.zeros(4, 3), torch.zeros(3), torch.tensor(0))
    ops.ema_commit_(*zero, counts, sums, 0.9, 1e-5, True)
    expected = torch.where(counts[:, None] > 0, sums / counts[:, None], 0.0)
    torch.testing.assert_close(zero[0], expected, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_moves_nothing(backend):
    before = commit(torch.zeros(4), torch.zeros(4, 3), steps=0)
    after = commit(torch.zeros(4), torch.zeros(4, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_unknown_backend_names_the_choices(monkeypatch):
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "fast")
    with pytest.raises(ValueError, match="choose one of reference, native, triton"):
        forward(torch.zeros(1, 2, 1, 1), torch.zeros(2, 2))


def test_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="FQ_TOOLKIT_BACKEND=triton cannot run here"):
        forward(torch.zeros(1, 2, 1, 1), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"triton": "3.6.0", "numpy": "2.4.1"}, "NumPy before 2.4"),
        ({"triton": "3.6.0+git1", "numpy": "2.3.5"}, None),
        ({"triton": "3.10.0", "numpy": "2.4.0rc1"}, None),
        ({"numpy": "2.4.0"}, "needs triton"),
    ],
)
def test_versions_that_the_interpreter_cannot_have(monkeypatch, versions, problem) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(ops, "version", version)
    found = ops.interpreter_problem()
    assert found is None if problem is None else problem in found
