"""Section 3: layouts, strides, sizes and memory."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.layers import FeatureQuantizer, quantize
from fq_toolkit.layers.quantizer.layout import check_features, from_canonical, to_canonical
from tests.layers.oracles import float64_argmin

LAYOUTS = {
    "(B, C)": ((6, 5), None, 1),
    "(B, L, C)": ((2, 7, 5), None, 2),
    "(B, C, L)": ((2, 5, 7), 1, 1),
    "NCHW": ((2, 5, 3, 4), None, 1),
    "NHWC": ((2, 3, 4, 5), -1, 3),
    "NCDHW": ((2, 5, 2, 3, 4), None, 1),
    "NDHWC": ((2, 2, 3, 4, 5), -1, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_the_same_lookup(backend: str, name: str) -> None:
    shape, channel_dim, axis = LAYOUTS[name]
    layer = FeatureQuantizer(5, 9, init="normal", channel_dim=channel_dim).eval()
    x = torch.randn(shape, requires_grad=True)
    out = layer.quantize(x)
    rows = x.movedim(axis, -1).reshape(-1, 5)
    expected = float64_argmin(rows, layer.codebook)
    assert torch.equal(out.indices.flatten(), expected)
    assert out.indices.shape == x.movedim(axis, -1).shape[:-1]
    assert out.quantized.shape == x.shape
    assert torch.equal(out.quantized.movedim(axis, -1).reshape(-1, 5), layer.codebook[expected])
    assert out.loss.shape == (shape[0],)
    assert torch.equal(layer.decode(out.indices), out.quantized)
    out.quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.flip(3)[:, :, :, :3],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, 1:2].expand(-1, 5, -1, -1),
        lambda x: x[:1].expand(4, -1, -1, -1),
    ],
)
def test_strided_views_give_what_their_copies_give(backend: str, view: Callable) -> None:
    layer = FeatureQuantizer(5, 9, init="normal").eval()
    x = view(torch.randn(4, 5, 6, 8))
    strided, copied = layer.quantize(x), layer.quantize(x.clone(memory_format=torch.contiguous_format))
    assert torch.equal(strided.indices, copied.indices)
    assert torch.equal(strided.quantized, copied.quantized)
    torch.testing.assert_close(strided.loss, copied.loss, rtol=1e-6, atol=0)  # summed in another order


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 6, 8)])
def test_layouts_become_canonical_without_a_copy(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    layout = check_features(x, 5, 1)
    view = to_canonical(x, layout)
    assert view.data_ptr() == x.data_ptr()
    assert view._base is x or view is x
    assert from_canonical(view, layout).data_ptr() == x.data_ptr()


def test_volumes_merge_without_a_copy_where_a_view_exists() -> None:
    x = torch.randn(2, 5, 3, 4, 6)
    for volume in (x, x[:, :, ::2], x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)[:, :, 1:]):
        layout = check_features(volume, 5, 1)
        assert torch.equal(from_canonical(to_canonical(volume, layout), layout), volume)
    assert to_canonical(x, check_features(x, 5, 1)).data_ptr() == x.data_ptr()
    sliced = x[:, :, ::2]
    assert to_canonical(sliced, check_features(sliced, 5, 1)).data_ptr() == sliced.data_ptr()


def test_channels_last_stays_channels_last(backend: str) -> None:
    layer = FeatureQuantizer(8, 9, init="normal")
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dim", [1, 2, 3, 17, 64, 100, 1024])
def test_any_dim(backend: str, dim: int) -> None:
    layer = FeatureQuantizer(dim, 7)
    y = layer(torch.randn(10, dim))
    assert y.shape == (10, dim)
    assert torch.isfinite(layer.codebook).all()


@pytest.mark.parametrize("codes", [1, 2, 1000, 65536])
def test_any_number_of_codes(backend: str, codes: int) -> None:
    book = torch.randn(codes, 2)
    x = torch.randn(20, 2)
    assert torch.equal(quantize(x, book).indices, float64_argmin(x, book))


@pytest.mark.parametrize("shape", [(0, 5), (0, 4, 5), (3, 0, 5), (0, 5, 2, 2), (2, 5, 0, 3)])
def test_no_rows_at_all(backend: str, shape: tuple[int, ...]) -> None:
    layer = FeatureQuantizer(5, 4, init="normal", revive=1.0)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(shape, requires_grad=True)
    out = layer.quantize(x)
    assert out.quantized.shape == x.shape
    assert out.loss.shape == (shape[0],)
    assert (out.loss == 0).all()
    (out.quantized.sum() + out.loss.sum()).backward()
    assert x.grad.shape == x.shape
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
def test_output_has_the_dtype_of_the_input_and_loss_is_float32(dtype: torch.dtype, mode: str) -> None:
    layer = FeatureQuantizer(4, 8, mode=mode)
    x = torch.randn(3, 4, 2, 2, dtype=dtype, requires_grad=True)
    out = layer.quantize(x)
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    (out.quantized.float().sum() + out.loss.sum()).backward()
    assert x.grad.dtype == dtype
    assert layer.codebook.dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_padding_is_as_if_it_were_not_there(seed: int, lengths: list[int]) -> None:
    torch.manual_seed(seed)
    masked, plain = FeatureQuantizer(3, 4, init="normal"), FeatureQuantizer(3, 4, init="normal")
    plain.load_state_dict(masked.state_dict())
    x = torch.randn(len(lengths), 6, 3)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    out = masked.quantize(x, mask=mask)
    by_length = FeatureQuantizer(3, 4, init="normal")
    by_length.load_state_dict(plain.state_dict())
    assert torch.equal(by_length.quantize(x, lengths=torch.tensor(lengths)).indices, out.indices)
    rows = plain.quantize(x[mask])
    assert torch.equal(out.indices[mask], rows.indices)
    assert (out.indices[~mask] == -1).all()
    assert torch.equal(out.quantized[~mask], x[~mask])
    assert torch.equal(masked.codebook, plain.codebook)
    for i, length in enumerate(lengths):
        row_losses = rows.loss[sum(lengths[:i]) : sum(lengths[: i + 1])]
        expected = row_losses.mean() if length else torch.zeros(())
        torch.testing.assert_close(out.loss[i], expected)


def test_a_large_lookup_stays_far_below_n_times_k() -> None:
    """Peak memory of a step whose N x K scores would take 1 GB in float32."""
    import subprocess
    import sys

    script = """
import resource, torch
torch.set_num_threads(1)
from fq_toolkit.layers import FeatureQuantizer, commitment_loss
layer = FeatureQuantizer(4, 8192)
layer(torch.randn(10000, 4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.randn(32768, 4, requires_grad=True)
(layer(x).sum() + commitment_loss(layer)).backward()
layer.eval()(x.detach())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150, f"a step took {run.stdout.strip()} MiB more"


def test_backward_keeps_the_features_the_indices_and_a_dictionary_but_not_the_output(backend: str) -> None:
    layer = FeatureQuantizer(16, 8, init="normal")
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        x = torch.randn(4, 16, 10, 10, requires_grad=True)
        layer(x)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert all(t.data_ptr() == x.data_ptr() for t in large)
    assert sum(t.numel() * t.element_size() for t in saved if t.numel() < x.numel()) <= 4 * 400 + 4 * 8 * 16


@pytest.mark.parametrize("shape", [(3, 8, 5, 5), (3, 7, 8), (3, 8), (2, 8, 3, 4, 5)])
@pytest.mark.parametrize("options", [{}, {"heads": 2}, {"codebook_dim": 3}], ids=str)
def test_decoded_features_lie_in_memory_as_the_quantized(shape: tuple, options: dict) -> None:
    layer, x = FeatureQuantizer(8, 16, init="normal", **options).eval(), torch.randn(shape)
    out = layer.quantize(x)
    decoded = layer.decode(out.indices)
    assert decoded.stride() == out.quantized.stride()
    torch.testing.assert_close(decoded, out.quantized)
