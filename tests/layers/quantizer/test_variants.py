"""Heads, projections, the cosine metric, rotation, residual stacks and the functional form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commitment_loss, quantize
from fq_toolkit.layers.quantizer.rotation import rotate_gradient
from tests.layers.oracles import float64_argmin


@pytest.mark.parametrize("shape", [(5, 12), (5, 7, 12), (5, 12, 3, 4)])
@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"heads": 3, "codebook_dim": 2}, {"heads": 2, "metric": "cosine"}]
)
def test_heads_look_up_their_channels_separately(shape: tuple[int, ...], options: dict) -> None:
    layer = FeatureQuantizer(12, 8, **options)
    layer(torch.randn(64, 12))
    layer.eval()
    x = torch.randn(shape)
    axis = 2 if len(shape) == 3 else 1
    out = layer.quantize(x)
    assert out.indices.shape == (*x.movedim(axis, -1).shape[:-1], options["heads"])
    torch.testing.assert_close(layer.decode(out.indices), out.quantized)
    inner = x.movedim(axis, -1)
    if layer.project_in is not None:
        inner = layer.project_in(inner)
    for head, part in enumerate(inner.chunk(options["heads"], dim=-1)):
        rows = part.reshape(-1, part.shape[-1])
        rows = F.normalize(rows, dim=1) if layer.metric == "cosine" else rows
        assert torch.equal(out.indices[..., head].flatten(), float64_argmin(rows, layer.codebook))


def test_loss_of_heads_and_projections_is_the_mean_over_what_is_looked_up() -> None:
    layer = FeatureQuantizer(12, 8, heads=2, codebook_dim=3, commitment=0.5, init="normal").eval()
    x = torch.randn(4, 7, 12)
    out = layer.quantize(x)
    inner = layer.project_in(x)
    codes = layer.codebook[out.indices].flatten(-2)
    torch.testing.assert_close(out.loss, 0.5 * (codes - inner).square().flatten(1).mean(dim=1))


def test_projections_train_and_cosine_codes_stay_unit_vectors() -> None:
    layer = FeatureQuantizer(12, 8, codebook_dim=4, metric="cosine", revive=1.0)
    for _ in range(4):
        out = layer.quantize(torch.randn(6, 12, 3, 3))
        torch.testing.assert_close(layer.codebook.norm(dim=1), torch.ones(8))
    (out.quantized.square().sum() + out.loss.sum()).backward()
    assert layer.project_in.weight.grad.abs().sum() > 0
    assert layer.project_out.weight.grad.abs().sum() > 0


def test_the_tokenizer_journey() -> None:
    fq = FeatureQuantizer(64, 512, codebook_dim=16, metric="cosine", revive=1.0)
    z = torch.randn(4, 64, 12, 12)
    fq(z)
    fq.eval()
    out = fq.quantize(z)
    assert out.loss.shape == (4,)
    torch.testing.assert_close(fq.decode(out.indices), out.quantized, rtol=1e-5, atol=1e-6)


def test_zero_vectors_have_a_cosine_too() -> None:
    layer = FeatureQuantizer(4, 8, metric="cosine", init="normal")
    x = torch.zeros(3, 4, requires_grad=True)
    out = layer.quantize(x)
    (out.quantized.sum() + out.loss.sum()).backward()
    assert torch.isfinite(out.quantized).all()
    assert torch.isfinite(x.grad).all()


# --- rotation -----------------------------------------------------------------------------------------------


def rotation_matrix(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The matrix of the paper, in float64: scale times reflection composed with the turn."""
    u, v = x / x.norm(), q / q.norm()
    r = (u + v) / (u + v).norm()
    turn = torch.eye(len(x), dtype=x.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(v, u)
    return q.norm() / x.norm() * turn


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), dim=st.integers(2, 7), scale=st.sampled_from([1e-2, 1.0, 100.0]))
def test_rotation_gradient_is_that_of_its_matrix(seed: int, dim: int, scale: float) -> None:
    torch.manual_seed(seed)
    x, q = scale * torch.randn(dim).double(), torch.randn(dim).double()
    matrix = rotation_matrix(x, q)
    torch.testing.assert_close(matrix @ x, q)
    leaf = x.view(1, dim, 1, 1).clone().requires_grad_()
    straight = q.view(1, dim, 1, 1) + (leaf - leaf.detach())
    y = rotate_gradient(leaf, straight, None)
    assert torch.equal(y.flatten(), q)
    grad_out = torch.randn(dim).double()
    (gradient,) = torch.autograd.grad(y, leaf, grad_out.view_as(y))
    torch.testing.assert_close(gradient.flatten(), matrix.t() @ grad_out)


def test_rotation_sends_forward_what_straight_through_does() -> None:
    turned, straight = FeatureQuantizer(5, 8, mode="rotation"), FeatureQuantizer(5, 8)
    x = torch.randn(4, 5, 6, 6)
    x[0, :, 0, 0] = 0.0
    for _ in range(3):
        assert torch.equal(turned(x), straight(x))
    leaf = x.clone().requires_grad_()
    turned(leaf).sum().backward()
    assert torch.equal(leaf.grad[0, :, 0, 0], torch.ones(5))  # no direction: straight through


# --- residual stacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 6), (4, 9, 6), (4, 6, 3, 3)])
def test_levels_quantize_what_is_left_over(shape: tuple[int, ...]) -> None:
    stack = ResidualQuantizer(6, 16, num_levels=3, commitment=1.0)
    for _ in range(3):
        stack(torch.randn(shape))
    stack.eval()
    axis = 2 if len(shape) == 3 else 1
    x = torch.randn(shape)
    out = stack.quantize(x)
    residual, total = x.movedim(axis, -1), 0
    loss = torch.zeros(shape[0])
    for i, level in enumerate(stack.levels):
        q = level.codebook[out.indices[..., i]]
        expected = float64_argmin(residual.reshape(-1, 6), level.codebook)
        assert torch.equal(out.indices[..., i].flatten(), expected)
        loss += (q - residual).square().flatten(1).mean(dim=1)
        residual, total = residual - q, total + q
    torch.testing.assert_close(out.quantized.movedim(axis, -1), total)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(stack.decode(out.indices), out.quantized)
    torch.testing.assert_close(
        stack.decode(out.indices[..., :1]).movedim(axis, -1), stack.levels[0].codebook[out.indices[..., 0]]
    )
    assert out.perplexity.shape == (3,)


def test_more_levels_come_closer() -> None:
    stack = ResidualQuantizer(4, 32, num_levels=4, init="kmeans")
    x = torch.randn(400, 4)
    stack(x)
    indices = stack.eval().quantize(x).indices
    errors = [(stack.decode(indices[..., :n]) - x).square().mean().item() for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_stack_passes_the_gradient_straight_through_and_pulls_every_level() -> None:
    stack = ResidualQuantizer(4, 8, num_levels=3, init="normal")
    x = torch.randn(5, 4, requires_grad=True)
    out = stack.quantize(x)
    (gradient,) = torch.autograd.grad(out.quantized.sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(x))
    torch.testing.assert_close(commitment_loss(stack), torch.zeros(()))
    stack(x)
    assert commitment_loss(stack) > 0


@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
def test_stack_modes_masks_and_bad_rows(mode: str) -> None:
    stack = ResidualQuantizer(4, 8, num_levels=3, mode=mode)
    stack(torch.randn(40, 4))
    x = torch.randn(3, 5, 4)
    x[0, 1, 2] = float("nan")
    x[1, 3, 0] = float("inf")
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[2, 2:] = False
    bad = ~torch.isfinite(x).all(dim=2)
    x.requires_grad_()
    out = stack.quantize(x, mask=mask)
    assert (out.indices[bad | ~mask] == -1).all()
    assert torch.equal(out.quantized[bad | ~mask].nan_to_num(5), x[bad | ~mask].nan_to_num(5))
    (out.quantized[~bad].sum() + out.loss.sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(level.codebook).all() for level in stack.levels)


def test_dropout_skips_the_last_levels_of_some_samples_in_training_only() -> None:
    stack = ResidualQuantizer(4, 8, num_levels=4, dropout=True, init="normal")
    x = torch.randn(200, 3, 4)
    out = stack.quantize(x)
    used = (out.indices >= 0).all(dim=1).sum(dim=1)
    skipped = (out.indices == -1).all(dim=1).sum(dim=1)
    assert torch.equal(used + skipped, torch.full((200,), 4))
    assert set(used.tolist()) == {1, 2, 3, 4}
    torch.testing.assert_close(stack.decode(torch.where(out.indices >= 0, out.indices, -1)).shape, x.shape)
    assert (stack.eval().quantize(x).indices >= 0).all()


# --- the functional form ------------------------------------------------------------------------------------


def test_functional_form_is_the_layer_without_state(backend: str) -> None:
    layer = FeatureQuantizer(4, 8, init="normal", commitment=1.0).eval()
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    ours, expected = quantize(x, layer.codebook), layer.quantize(x)
    assert torch.equal(ours.quantized, expected.quantized)
    assert torch.equal(ours.indices, expected.indices)
    assert torch.equal(ours.loss, expected.loss)
    assert torch.equal(ours.perplexity, expected.perplexity)
    (ours.quantized.sum() + ours.loss.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_functional_form_takes_any_codebook_and_gives_it_no_gradient(backend: str) -> None:
    x, book = (
        torch.randn(2, 6, 4, requires_grad=True),
        torch.randn(8, 4, dtype=torch.float64, requires_grad=True),
    )
    out = quantize(x, book, lengths=torch.tensor([6, 2]), precision="fast", commitment=0.5)
    assert (out.indices[1, 2:] == -1).all()
    (out.quantized.sum() + out.loss.sum()).backward()
    assert book.grad is None
    broken = book.detach().float().clone()
    broken[3] = float("nan")
    assert (quantize(x, broken).indices != 3).all()
    assert (quantize(x, torch.full((2, 4), float("nan"))).indices == -1).all()


def test_a_schedule_that_is_set_later_is_told_of_all_updates() -> None:
    layer, x, asked = FeatureQuantizer(4, 8), torch.randn(20, 4), []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5

    for _ in range(3):
        layer(x)
    layer.strength = schedule
    for _ in range(2):
        layer(x)
    layer.strength = 1.0
    layer(x)
    layer.strength = schedule
    layer(x)
    layer.eval()(x)
    assert asked == [3, 4, 6, 7]
