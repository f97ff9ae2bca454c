"""AdaLIN and class activation maps are their equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fq_toolkit.fqgan.ugatit.layers import (
    LIN,
    AdaLIN,
    ClassActivationMap,
    clip_rho,
    layer_instance_norm,
    shared_maximum,
)


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 5), rho=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_adalin_is_its_equation(seed: int, channels: int, rho: float) -> None:
    random = np.random.default_rng(seed)
    x, gamma, beta = random.normal(2, 3, (2, channels, 4, 3)), *random.normal(size=(2, 2, channels))
    share = np.full(channels, rho)
    by_instance = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    by_layer = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
    mixed = share[:, None, None] * by_instance + (1 - share[:, None, None]) * by_layer
    expected = gamma[:, :, None, None] * mixed + beta[:, :, None, None]

    layer = AdaLIN(channels).double()
    layer.rho.data = torch.from_numpy(share)
    found = layer(*map(torch.from_numpy, (x, gamma, beta)))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    plain = LIN(channels).double()
    plain.rho.data, plain.gamma.data, plain.beta.data = map(torch.from_numpy, (share, gamma[0], beta[0]))
    found = plain(torch.from_numpy(x))
    np.testing.assert_allclose(
        found.detach().numpy(), gamma[0][:, None, None] * mixed + beta[0][:, None, None], rtol=1e-9, atol=1e-9
    )


def test_rho_stays_between_instance_and_layer() -> None:
    model = nn.Sequential(AdaLIN(3), LIN(3))
    assert model[0].rho.tolist() == pytest.approx([0.9] * 3)
    assert model[1].rho.tolist() == [0.0] * 3
    for layer in model:
        layer.rho.data = torch.tensor([-0.5, 0.25, 1.5])
    clip_rho(model)
    assert [layer.rho.tolist() for layer in model] == [[0.0, 0.25, 1.0]] * 2
    assert model[0].rho.requires_grad
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer_instance_norm(x, torch.ones(3)), nn.functional.instance_norm(x))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_attention_is_its_equation(seed: int) -> None:
    torch.manual_seed(seed)
    layer = ClassActivationMap(3, nn.ReLU()).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = layer(x)
    average, maximum, mix, bias = (
        weight.detach().numpy()
        for weight in (layer.average.weight, layer.maximum.weight, layer.mix.weight, layer.mix.bias)
    )
    a = x.numpy()
    logits = np.stack([a.mean((2, 3)) @ average[0], a.max((2, 3)) @ maximum[0]], axis=1)
    weighted = np.concatenate([a * average[0][:, None, None], a * maximum[0][:, None, None]], axis=1)
    mixed = np.einsum("oc,bchw->bohw", mix[:, :, 0, 0], weighted) + bias[:, None, None]
    np.testing.assert_allclose(found.logits.detach().numpy(), logits, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.features.detach().numpy(), mixed.clip(0), rtol=1e-10, atol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    values=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=25, deadline=None)
def test_maxima_that_rounding_set_apart_share_the_gradient(
    seed: int, values: int, dtype: torch.dtype
) -> None:
    """The gradient of exact ties, whatever their last bits are; of the values only the last bits move."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randint(-values, values + 1, (2, 3, 4, 5), generator=draws).to(dtype)
    expected = x.clone().requires_grad_()
    expected.amax(dim=(2, 3)).square().sum().backward()  # amax shares it, when ties are exact
    noise = 16 * torch.finfo(dtype).eps * x.abs().amax(dim=(1, 2, 3), keepdim=True)
    found = (x + noise * (torch.rand(x.shape, generator=draws) - 0.5)).requires_grad_()
    pooled = shared_maximum(found)
    pooled.square().sum().backward()
    assert pooled.shape == (2, 3)
    assert bool(((pooled - found.amax(dim=(2, 3))).abs() <= noise[:, :, 0, 0]).all())
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
@settings(max_examples=15, deadline=None)
def test_a_single_maximum_is_that_of_amax(seed: int, dtype: torch.dtype) -> None:
    order = torch.randperm(2 * 3 * 20, generator=torch.Generator().manual_seed(seed)) - 50
    x, same = (order.view(2, 3, 4, 5).to(dtype).requires_grad_() for _ in range(2))
    pooled, expected = shared_maximum(x), same.amax(dim=(2, 3))
    assert torch.equal(pooled, expected)
    pooled.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, same.grad)  # type: ignore[arg-type]
