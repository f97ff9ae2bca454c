"""The Triton lookup returns the indices of the definition, bit for bit, and what follows from them."""

from __future__ import annotations

import pytest
import torch

from fq_toolkit.kernels import reference
from fq_toolkit.kernels.launch import LaunchConfig

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = ["nchw", "channels_last", "sliced"]
# (batch, height, width), channels, codes: one row, one code, one channel, remainders in every tile, several
# tiles
SHAPES = [
    ((1, 1, 1), 1, 1),
    ((33, 1, 1), 3, 2),
    ((2, 3, 7), 5, 7),
    ((1, 5, 7), 48, 65),
    ((3, 1, 11), 65, 33),
    ((2, 4, 5), 130, 70),
]


@pytest.fixture
def lookup(kernel_device):
    from fq_toolkit.kernels.lookup_triton import lookup

    def run(x, codebook, center, mask=None, strength=1.0, with_output=True, exact=True, **kwargs):
        move = [None if t is None else t.to(kernel_device) for t in (x, codebook, center, mask)]
        results = lookup(*move, strength, with_output, exact, **kwargs)
        return tuple(result.cpu() for result in results)

    return run


def expected(x, codebook, mask=None, strength=1.0):
    """Indices by the definition itself, without a coarse pass; output and row errors in float64."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    finite = rows.isfinite().all(dim=1)
    live = codebook.isfinite().all(dim=1)
    safe = torch.where(finite[:, None], rows, torch.zeros_like(rows)).double()
    codes = torch.where(live[:, None], codebook, torch.zeros_like(codebook)).double()
    distances = reference.direct_distances(safe, codes)
    distances[:, ~live] = float("inf")
    index = distances.argmin(dim=1)
    if live.any():
        overflowed = ~live[index]
        index[overflowed] = int(live.int().argmax())
    index[~finite] = -1
    if not live.any():
        index[:] = -1
    if mask is not None:
        index[~mask] = -2
    valid = (index >= 0)[:, None]
    quantized = codes[index.clamp(min=0)]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = rows.to(work)
    blend = quantized.to(work) if strength == 1 else wide + strength * (quantized.to(work) - wide)
    out = torch.where(valid, blend.to(x.dtype), rows).view(batch, height, width, channels).permute(0, 3, 1, 2)
    error = torch.where(valid[:, 0], (safe - quantized).square().sum(dim=1), 0.0)
    return out, index.int(), error.float()


def assert_same(result, wanted, strength=1.0):
    out, index, error = result
    assert torch.equal(index, wanted[1])
    torch.testing.assert_close(error, wanted[2], rtol=1e-5, atol=1e-6)
    if strength == 1.0:  # the code itself, rounded once
        assert torch.equal(out.nan_to_num(), wanted[0].nan_to_num())
        assert torch.equal(out.isnan(), wanted[0].isnan())
    else:
        torch.testing.assert_close(out, wanted[0], equal_nan=True)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim", "num_codes"), SHAPES)
def test_matches_the_definition(lookup, strided, shape, dim, num_codes, dtype):
    number = shape[0] * shape[1] * shape[2]
    layout = LAYOUTS[(number + dim) % 3]
    rows, codebook = torch.randn(number, dim).to(dtype), torch.randn(num_codes, dim)
    if number > 4:
        rows[1, 0], rows[2, -1], rows[3, dim // 2] = float("nan"), float("inf"), -float("inf")
    mask = torch.rand(number) > 0.2 if number > 1 else None
    x = strided(rows, shape, layout)
    center = rows.nan_to_num(0, 0, 0).float().mean(dim=0)
    result = lookup(x, codebook, center, mask)
    assert_same(result, expected(x, codebook, mask))
    assert result[0].stride() == torch.empty_like(x).stride()
    assert result[0].dtype == dtype


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_strength_blends_in_working_precision(lookup, strided, dtype, strength):
    rows, codebook = torch.randn(35, 33).to(dtype), torch.randn(19, 33)
    x = strided(rows, (1, 5, 7), "sliced")
    assert_same(
        lookup(x, codebook, torch.zeros(33), strength=strength),
        expected(x, codebook, strength=strength),
        strength,
    )
    if strength == 0.0:
        assert torch.equal(lookup(x, codebook, torch.zeros(33), strength=0.0)[0], x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_read_in_place(lookup, strided, layout):
    rows, codebook = torch.randn(2 * 5 * 6, 17), torch.randn(40, 17)
    x = strided(rows, (2, 5, 6), layout)
    assert_same(lookup(x, codebook, torch.zeros(17)), expected(x, codebook))
    swapped = x.transpose(2, 3)
    assert_same(lookup(swapped, codebook, torch.zeros(17)), expected(swapped, codebook))
    repeated = x[:1, :, :1].expand(3, -1, 2, -1)
    assert_same(lookup(repeated, codebook, torch.zeros(17)), expected(repeated, codebook))


def test_ties_go_to_the_lowest_code(lookup):
    codebook = torch.randint(-1, 2, (70, 3)).float()  # many equal codes, in several tiles
    x = torch.randint(-2, 3, (20, 3, 1, 1)) / 2
    assert_same(lookup(x, codebook, torch.full((3,), 0.25)), expected(x, codebook))
    same = torch.ones(70, 3)
    assert lookup(x, same, torch.zeros(3))[1].eq(0).all()


@pytest.mark.parametrize("dot", ["ieee", "tf32x3", "tf32"])
def test_any_radius_gives_the_same_indices(lookup, dot):
    """The wider the radius, the more rows the second launch has to settle."""
    x, codebook = torch.randn(64, 40, 1, 1), torch.randn(65, 40)
    config = LaunchConfig(32, 16, 16, 4, 1, dot)
    assert_same(lookup(x, codebook, torch.zeros(40), config=config), expected(x, codebook))


@pytest.mark.parametrize("block", [(16, 16, 16), (64, 128, 64)])
def test_any_tile_gives_the_same_indices(lookup, block):
    x, codebook = torch.randn(50, 40, 1, 1), torch.randn(100, 40)
    config = LaunchConfig(*block, 4, 1, "ieee")
    assert_same(lookup(x, codebook, torch.zeros(40), config=config), expected(x, codebook))


@pytest.mark.parametrize("center", ["mean", "zero", "far", "nan"])
def test_any_center_gives_the_same_indices(lookup, center):
    x, codebook = 1 + 1e-3 * torch.randn(20, 12, 1, 1), 1 + 1e-3 * torch.randn(33, 12)
    value = {"mean": 1.0, "zero": 0.0, "far": -1e6, "nan": float("nan")}[center]
    assert_same(lookup(x, codebook, torch.full((12,), value)), expected(x, codebook))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflows that the kernel expects
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e17, 1e25, 3e38])
def test_extreme_scales(lookup, scale):
    x, codebook = scale * torch.rand(18, 9, 1, 1), scale * torch.rand(20, 9)
    _, index, _ = lookup(x, codebook, torch.zeros(9))
    assert torch.equal(index, expected(x, codebook)[1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float64_rows_beyond_float32(lookup):
    values = [1e200, -1e200, 1e-200, 0.5 + 1e-12, 0.5 - 1e-12]
    x = torch.tensor(values, dtype=torch.float64).view(5, 1, 1, 1)
    codebook = torch.tensor([[0.0], [1.0], [-1.0]])
    assert (
        lookup(x, codebook, torch.zeros(1))[1].tolist()
        == expected(x, codebook)[1].tolist()
        == [0, 0, 0, 1, 0]
    )


def test_codes_that_are_not_finite_never_win(lookup):
    x, codebook = torch.randn(20, 6, 1, 1), torch.randn(40, 6)
    codebook[0, 2], codebook[17, 0], codebook[39, 5] = float("nan"), float("inf"), -float("inf")
    for exact in (True, False):
        _, index, _ = result = lookup(x, codebook, torch.zeros(6), exact=exact)
        assert not {0, 17, 39} & set(index.tolist())
        assert_same(result, expected(x, codebook))
    codebook[:] = float("nan")
    for exact in (True, False):
        out, index, error = lookup(x, codebook, torch.zeros(6), exact=exact)
        assert index.eq(-1).all()
        assert error.eq(0).all()
        assert torch.equal(out, x)


@pytest.mark.usefixtures("poison")
def test_fast_search_keeps_the_rules_for_rows(lookup):
    x, codebook = torch.randn(40, 16, 1, 1), torch.randn(50, 16)
    x[3, 2] = float("nan")
    mask = torch.arange(40) != 7
    assert_same(lookup(x, codebook, torch.zeros(16), mask, exact=False), expected(x, codebook, mask))


def test_a_bad_row_leaves_the_others_bit_identical(lookup):
    x, codebook = torch.randn(33, 12, 1, 1), torch.randn(21, 12)
    clean = lookup(x, codebook, torch.zeros(12), strength=0.5)
    x[5] = float("nan")
    dirty = lookup(x, codebook, torch.zeros(12), strength=0.5)
    keep = torch.arange(33) != 5
    assert all(torch.equal(a[keep], b[keep]) for a, b in zip(clean, dirty, strict=True))
    assert dirty[1][5] == -1


def test_no_rows_and_no_output(lookup):
    out, index, error = lookup(torch.zeros(0, 4, 2, 2), torch.randn(3, 4), torch.zeros(4))
    assert out.shape == (0, 4, 2, 2)
    assert index.numel() == error.numel() == 0
    x, codebook = torch.randn(9, 4, 1, 1), torch.randn(3, 4)
    out, index, error = lookup(x, codebook, torch.zeros(4), with_output=False)
    assert out.numel() == 0
    wanted = expected(x, codebook)
    assert torch.equal(index, wanted[1])
    torch.testing.assert_close(error, wanted[2])


def test_splitting_the_batch_changes_nothing(lookup):
    x, codebook = torch.randn(50, 16, 1, 1), torch.randn(50, 16)
    whole = lookup(x, codebook, torch.zeros(16))
    parts = [lookup(part, codebook, torch.zeros(16)) for part in x.split(17)]
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(several))


def test_row_geometry_addresses_every_row(kernel_device, strided):
    from fq_toolkit.kernels.rows_triton import row_geometry

    for shape in ((2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 5), (1, 1, 1)):
        number = shape[0] * shape[1] * shape[2]
        for layout in LAYOUTS:
            x = strided(torch.arange(number * 2.0).view(number, 2), shape, layout)
            storage = torch.as_strided(x, (x.untyped_storage().nbytes() // 4,), (1,), 0)
            size_p, size_q, (one, two) = row_geometry(x, torch.empty_like(x))
            n = torch.arange(number)
            outer = n // size_q
            offset = outer // size_p * one[0] + outer % size_p * one[2] + n % size_q * one[3]
            offset += x.storage_offset()
            assert torch.equal(storage[offset], x[:, 0].reshape(-1))
            assert torch.equal(storage[offset + one[1]], x[:, 1].reshape(-1))
            if layout == "channels_last":
                assert (size_p, size_q) == (1, number)
                assert one == two


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim", "num_codes"), [(20000, 256, 1024), (3000, 64, 5000), (70000, 8, 300)])
def test_on_the_device_matches_and_repeats(lookup, n, dim, num_codes, dtype):
    rows, codebook = 1 + torch.randn(n, dim), 1 + torch.randn(num_codes, dim)
    codebook[num_codes // 2 :: 7] = codebook[3]
    x = rows.to(dtype).view(n, dim, 1, 1)
    center = torch.ones(dim)
    first = lookup(x, codebook, center)
    wanted = reference.quantize_forward(x, codebook, center, None, 1.0, True, False, True)
    assert torch.equal(first[1], wanted[1])
    assert torch.equal(first[0], wanted[0])
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, lookup(x, codebook, center), strict=True))
