"""Quantizers inside `torch.func` and under forward derivatives, against plain autograd."""

import pytest
import torch
from torch.autograd import forward_ad

from fq_toolkit import FeatureQuantizer, ResidualQuantizer, commitment_loss, frozen, quantize

LAYERS = {
    "regularize": lambda: FeatureQuantizer(8, 5, mode="regularize"),
    "straight-through": lambda: FeatureQuantizer(8, 5, mode="straight_through"),
    "half strength": lambda: FeatureQuantizer(8, 5, mode="straight_through", strength=0.5),
    "rotation": lambda: FeatureQuantizer(8, 5, mode="rotation"),
    "heads": lambda: FeatureQuantizer(8, 5, mode="straight_through", heads=2),
    "cosine": lambda: FeatureQuantizer(8, 5, mode="straight_through", metric="cosine"),
    "projected": lambda: FeatureQuantizer(8, 5, mode="straight_through", codebook_dim=3),
    "fast": lambda: FeatureQuantizer(8, 5, mode="straight_through", precision="fast"),
    "residual": lambda: ResidualQuantizer(8, 5, num_levels=3, mode="straight_through"),
    "residual rotation": lambda: ResidualQuantizer(8, 5, num_levels=2, mode="rotation"),
}
close = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=LAYERS)
def layer(request):
    """In evaluation, with a dictionary that has seen data."""
    torch.manual_seed(0)
    found = LAYERS[request.param]()
    for _ in range(3):
        found(torch.randn(6, 8, 3, 3))
    commitment_loss(found)  # read, so that nothing is left
    return found.eval()


def objective(layer):
    """A smooth scalar of everything that a lookup returns with a gradient."""
    weights = torch.randn(8, 3, 3)

    def of(x):
        found = layer.quantize(x)
        return (weights * found.quantized).sin().sum() + found.loss.exp().sum()

    return of


def features(count=4):
    return torch.randn(count, 8, 3, 3)


def gradient(function, x, **options):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x, **options)[0]


def test_gradients_values_and_samples(layer):
    of, x = objective(layer), features()
    grad, value = torch.func.grad_and_value(of)(x)
    torch.testing.assert_close(grad, gradient(of, x), **close)
    torch.testing.assert_close(value, of(x), **close)
    each = torch.func.vmap(torch.func.grad(lambda row: of(row[None])))(x)
    torch.testing.assert_close(each, torch.cat([gradient(of, row[None]) for row in x]), **close)


def test_outputs_and_indices_are_the_ordinary_ones(layer):
    x = features()
    wanted = layer.quantize(x)
    torch.testing.assert_close(
        torch.func.vmap(lambda row: layer(row[None])[0])(x), wanted.quantized, rtol=0, atol=1e-6
    )
    indices = torch.func.vmap(lambda row: layer.quantize(row[None]).indices[0])(x)
    assert torch.equal(indices, wanted.indices)


def test_a_gradient_penalty(layer):
    """Second order, as R1 has it."""
    of, x = objective(layer), features(2)
    got = torch.func.grad(lambda y: torch.func.grad(of)(y).square().sum())(x)
    x.requires_grad_()
    (first,) = torch.autograd.grad(of(x), x, create_graph=True)
    (wanted,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_forward_derivatives_agree_with_backward_ones(layer):
    of, x, along = objective(layer), features(), features()
    wanted = (gradient(of, x) * along).sum()
    torch.testing.assert_close(torch.func.jvp(of, (x,), (along,))[1], wanted, rtol=1e-3, atol=1e-3)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(of(forward_ad.make_dual(x, along))).tangent
    torch.testing.assert_close(tangent, wanted, rtol=1e-3, atol=1e-3)


def test_masks_and_bad_rows_pass_with_their_gradient():
    layer = LAYERS["straight-through"]()
    layer(torch.randn(6, 8, 3, 3))
    layer.eval()
    x = features(2)
    x[0, 3, 1, 1] = torch.inf
    mask = torch.rand(2, 3, 3) < 0.7
    got, pull = torch.func.vjp(lambda y: layer(y, mask), x)
    assert torch.equal(got, layer(x, mask))
    upstream = torch.randn_like(x)
    assert torch.equal(pull(upstream)[0], upstream)


def test_nothing_is_counted_and_nothing_recorded(layer):
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.func.grad(objective(layer))(features())
    torch.func.grad(lambda x: layer(x).sum())(features())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert commitment_loss(layer) == 0


def test_training_is_refused_and_loses_nothing():
    layer = FeatureQuantizer(8, 5)
    layer(features())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"torch\.func.*eval\(\).*frozen"):
        torch.func.grad(lambda x: layer(x).sum())(features())
    with pytest.raises(RuntimeError, match="forward derivatives"), forward_ad.dual_level():
        layer(forward_ad.make_dual(features(), features()))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with frozen(layer):
        grad = torch.func.grad(lambda x: layer(x).sum())(features())
    assert torch.equal(grad, torch.ones_like(grad))


def test_the_commitment_loss_is_asked_for_in_vain():
    layer = FeatureQuantizer(8, 5, init="normal").eval()

    def of(x):
        layer(x)
        return commitment_loss(layer)

    with pytest.raises(RuntimeError, match=r"quantize\(x\)\.loss"):
        torch.func.grad(of)(features())


def test_a_batch_of_dictionaries():
    """The function knows no layer, so that vmap can give every sample a dictionary of its own."""
    x, books = torch.randn(3, 4, 2, 2), torch.randn(3, 7, 4)
    got = torch.func.vmap(lambda row, book: quantize(row[None], book))(x, books)
    for i in range(3):
        wanted = quantize(x[i : i + 1], books[i])
        assert torch.equal(got.indices[i], wanted.indices)
        torch.testing.assert_close(got.quantized[i], wanted.quantized)
        torch.testing.assert_close(got.loss[i], wanted.loss)


def test_compiled_code_tells_transforms_from_ordinary_calls():
    layer = LAYERS["straight-through"]()
    layer(features())
    layer.eval()
    torch._dynamo.reset()

    def of(x):
        return (layer(x) * weights).sum()

    x, weights = features(), features(1)
    ordinary = torch.compile(of, backend="aot_eager", fullgraph=True)
    gradients = torch.compile(torch.func.grad(of), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(ordinary(x), of(x))
        torch.testing.assert_close(gradients(x), gradient(of, x), **close)
