"""Section 2: numerics. Exact indices on inputs chosen to break float32, containment of NaN, determinism."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.kernels import ops
from fq_toolkit.layers import FeatureQuantizer, commitment_loss, quantize
from tests.layers.oracles import float64_argmin

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def hard_sets() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Features and dictionaries on which a plain float32 lookup goes wrong."""
    g = torch.Generator().manual_seed(7)
    x, codes = torch.randn(96, 12, generator=g), torch.randn(24, 12, generator=g)
    sets = {
        "offset 30": (x + 30, codes + 30),
        "offset 1000": (x + 1000, codes + 1000),
        "spread 1e-3 around 1": (1 + 1e-3 * x, 1 + 1e-3 * codes),
        "duplicated codes": (x, codes[torch.arange(24) // 3]),
        "rows on codes": (codes.repeat(4, 1), codes),
        "midpoints of codes": ((codes[:12] + codes[12:]).repeat(8, 1) / 2, codes),
        "large and small codes": (x, codes * torch.logspace(-6, 6, 24)[:, None]),
    }
    for exponent in (-12, -6, 6, 12, 15):
        sets[f"scale 1e{exponent}"] = (x * 10.0**exponent, codes * 10.0**exponent)
    return sets


@pytest.mark.parametrize("name", hard_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_on_hard_sets(backend: str, name: str, dtype: torch.dtype) -> None:
    x, codes = hard_sets()[name]
    x = x.to(dtype)
    out = quantize(x, codes)
    finite = torch.isfinite(x).all(dim=1)
    assert torch.equal(out.indices[finite], float64_argmin(x[finite], codes))
    assert (out.indices[~finite] == -1).all()
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32


def test_spread_1e_3_around_1_defeats_float32() -> None:
    """The hard sets are hard: the textbook float32 formula gets most rows wrong."""
    x, codes = 1 + 1e-3 * torch.randn(256, 256), 1 + 1e-3 * torch.randn(256, 256)
    textbook = (x.square().sum(1, keepdim=True) - 2 * x @ codes.t() + codes.square().sum(1)).argmin(dim=1)
    exact = float64_argmin(x, codes)
    assert (textbook != exact).float().mean() > 0.5
    assert torch.equal(quantize(x, codes).indices, exact)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 60), codes=st.integers(1, 70), dim=st.integers(1, 33),
    offset=st.sampled_from([0.0, 1.0, 30.0, 1000.0]), spread=st.sampled_from([1e-3, 1.0, 100.0]),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_exact_for_any_shape(
    seed: int, n: int, codes: int, dim: int, offset: float, spread: float, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = (offset + spread * torch.randn(n, dim, generator=g)).to(dtype)
    book = offset + spread * torch.randn(codes, dim, generator=g)
    assert torch.equal(quantize(x, book).indices, float64_argmin(x, book))


def test_fast_precision_says_what_it_trades(backend: str) -> None:
    layer = FeatureQuantizer(8, 16, precision="fast", init="normal").eval()
    x = torch.randn(64, 8)
    agreement = (layer.quantize(x).indices == float64_argmin(x, layer.codebook)).float().mean()
    assert agreement > 0.95


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 12))
def test_splitting_the_batch_changes_no_bit(seed: int, cut: int) -> None:
    torch.manual_seed(seed)
    layer = FeatureQuantizer(7, 20, init="normal").eval()
    x = torch.randn(12, 7, 3, 5)
    whole, parts = layer.quantize(x), [layer.quantize(part) for part in (x[:cut], x[cut:])]
    assert torch.equal(whole.indices, torch.cat([part.indices for part in parts]))
    assert torch.equal(whole.quantized, torch.cat([part.quantized for part in parts]))
    assert torch.equal(whole.loss, torch.cat([part.loss for part in parts]))


def trained(threads: int) -> tuple[torch.Tensor, ...]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(3)
        layer = FeatureQuantizer(9, 33, revive=0.5)
        gradients = []
        for _ in range(3):
            x = torch.randn(8, 9, 11, 7, requires_grad=True)
            (layer(x).square().mean() + commitment_loss(layer)).backward()
            gradients.append(x.grad)
        return (*layer.state_dict().values(), *gradients)
    finally:
        torch.set_num_threads(before)


def test_twenty_runs_and_any_number_of_threads_are_bitwise_equal(backend: str) -> None:
    first = trained(1)
    for run in range(20 if backend == "native" else 5):
        assert all(torch.equal(a, b) for a, b in zip(first, trained(1 + run % 3), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
@pytest.mark.parametrize("extra", [{}, {"codebook_dim": 3}, {"metric": "cosine"}, {"heads": 2}], ids=str)
def test_a_bad_row_changes_nothing_else(value: float, mode: str, extra: dict) -> None:
    torch.manual_seed(1)
    clean_layer = FeatureQuantizer(4, 8, init="normal", mode=mode, **extra)
    layer = FeatureQuantizer(4, 8, init="normal", mode=mode, **extra)
    layer.load_state_dict(clean_layer.state_dict())
    x = torch.randn(3, 4, 4, 4)
    bad = x.clone()
    bad[1, 2, 3, 3] = value
    mask = torch.ones(3, 4, 4, dtype=torch.bool)
    mask[1, 3, 3] = False
    x.requires_grad_()
    bad.requires_grad_()
    expected, got = clean_layer.quantize(x, mask=mask), layer.quantize(bad)
    keep = mask[:, None].expand_as(x)
    assert torch.equal(got.quantized[keep], expected.quantized[keep])
    assert torch.equal(got.quantized[1, :, 3, 3].nan_to_num(7), bad[1, :, 3, 3].nan_to_num(7))
    assert torch.equal(got.indices[mask], expected.indices[mask])
    assert (got.indices[~mask] == -1).any()
    assert torch.equal(layer.codebook, clean_layer.codebook)
    assert torch.equal(layer.ema_sums, clean_layer.ema_sums)
    assert int(layer.nonfinite_rows) == 1
    # the bad row still counts as a position of its sample, the masked one does not
    torch.testing.assert_close(got.loss[1] * 16, expected.loss[1] * 15)
    assert torch.equal(got.loss[[0, 2]], expected.loss[[0, 2]])
    weight = torch.randn_like(x)
    for output, features in ((expected, x), (got, bad)):
        torch.where(keep, output.quantized * weight, 0.0).sum().add(output.loss[[0, 2]].sum()).backward()
        assert torch.isfinite(features.grad[keep]).all()
    torch.testing.assert_close(bad.grad[keep], x.grad[keep])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in layer.parameters())


def test_nan_under_the_mask_is_harmless(backend: str) -> None:
    layer = FeatureQuantizer(4, 8, init="normal")
    x = torch.randn(2, 6, 4)
    x[0, 4:] = float("nan")
    x.requires_grad_()
    out = layer.quantize(x, lengths=torch.tensor([4, 6]))
    assert torch.isfinite(out.loss).all()
    assert int(layer.nonfinite_rows) == 0
    assert torch.isfinite(layer.codebook).all()
    out.loss.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_nothing_but_bad_rows_updates_nothing(backend: str) -> None:
    layer = FeatureQuantizer(4, 8)
    x = torch.full((5, 4), float("nan"))
    assert torch.isnan(layer(x)).all()
    assert not bool(layer.initialized)
    assert int(layer.num_updates) == 0
    layer(torch.randn(20, 4))
    assert bool(layer.initialized)
    assert int(layer.num_updates) == 1
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(x)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert int(layer.nonfinite_rows) == 10


def test_nonfinite_raise_changes_nothing() -> None:
    layer = FeatureQuantizer(4, 8, nonfinite="raise")
    x = torch.randn(6, 4)
    x[2, 1] = float("inf")
    with pytest.raises(ValueError, match="1 of 6 feature vectors hold NaN or Inf, the first at row 2"):
        layer(x)
    assert not bool(layer.initialized)
    mask = torch.ones(6, dtype=torch.bool)
    mask[2] = False
    layer(x, mask=mask)
    assert bool(layer.initialized)


def test_statistics_add_up_exactly_beyond_2_to_the_24() -> None:
    from fq_toolkit.layers.codebook.statistics import BatchStatistics

    counts = torch.tensor([2**24 + 1, 2**30 + 12345, 0, 7])
    batch = BatchStatistics(counts, torch.zeros(4, 2), torch.tensor(2**25 + 3), torch.ones(3), 3)
    doubled = batch.unflatten(batch.flatten() + batch.flatten())
    assert torch.equal(doubled.counts, 2 * counts)
    assert int(doubled.skipped) == 2 * (2**25 + 3)
    assert int(doubled.samples) == 6
    assert float(doubled.loss.sum()) == 6.0


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 3e38), (torch.float64, 1e200)])
def test_sums_beyond_float32_pass(backend: str, dtype: torch.dtype, value: float) -> None:
    """Rows that are finite but add up to infinity: the dictionary finds back to the features that follow."""
    layer = FeatureQuantizer(4, 8, decay=0.25)
    layer(torch.randn(64, 4))
    x = torch.randn(64, 4, dtype=dtype)
    x[3:5] = value
    layer(x)
    for _ in range(80):
        layer(torch.randn(64, 4))
    assert layer.codebook.abs().max() < 10
    assert layer.center.abs().max() < 10
    assert layer.dead_codes() <= 1


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_sum_that_is_not_finite_moves_nothing_but_its_count(backend: str, bad: float) -> None:
    torch.manual_seed(0)
    state = [torch.randn(5, 3), torch.rand(5) + 1, torch.randn(5, 3), torch.randn(3), torch.tensor(2)]
    sums, counts = torch.randn(5, 3), torch.ones(5)
    sums[1, 2] = bad
    moved = [tensor.clone() for tensor in state]
    ops.ema_commit_(*moved, counts, sums, 0.75, 1e-5, False)
    expected = 0.75 * state[2] + 0.25 * sums
    expected[1, 2] = state[2][1, 2]
    torch.testing.assert_close(moved[2], expected)
    assert torch.isfinite(moved[0]).all()
    torch.testing.assert_close(moved[3][:2], 0.75 * state[3][:2] + 0.25 * sums[:, :2].mean(dim=0))
    assert torch.equal(moved[3][2], state[3][2])
