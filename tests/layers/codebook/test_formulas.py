"""Section 1 of the specification: what the layer computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen
from tests.layers.oracles import ReleasedOracle, ZeroDebiasedOracle, float64_argmin, rows_of

LIVE = (
    1e3  # the released start throws unused codes far away, where a relative comparison is the only fair one
)


def fed(layer: FeatureQuantizer, oracle: ReleasedOracle | ZeroDebiasedOracle, steps: int) -> None:
    """Feed both the same drifting clusters, and compare the whole state as they go."""
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(12, layer.dim, generator=generator) * 2
    for step in range(steps):
        picked = centers[torch.randint(12, (4 * 9,), generator=generator)]
        rows = picked + 0.3 * torch.randn(4 * 9, layer.dim, generator=generator) + 0.01 * step
        x = rows.view(4, 3, 3, layer.dim).permute(0, 3, 1, 2)
        out = layer.quantize(x)
        expected = oracle.step(x)
        indices = expected if isinstance(expected, torch.Tensor) else expected[0]
        assert torch.equal(out.indices.flatten(), indices), f"step {step}"
        if not isinstance(expected, torch.Tensor):
            torch.testing.assert_close(out.loss.double(), expected[1], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(out.perplexity.double(), expected[2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.codebook.double(), oracle.codebook, rtol=2e-4, atol=2e-5)
        # Both go on from the same dictionary: a difference of one rounding must not grow through the argmin.
        oracle.codebook = layer.codebook.double()


def test_released_formulas_over_200_steps(backend: str) -> None:
    layer = FeatureQuantizer(5, 16, preset="fqgan", commitment=0.7)
    fed(layer, ReleasedOracle(layer.codebook, decay=0.8, commitment=0.7), steps=200)
    assert int(layer.num_updates) == 200


def test_tensorflow_formulas_over_200_steps(backend: str) -> None:
    layer = FeatureQuantizer(5, 16, preset="fqgan-tf")
    fed(layer, ZeroDebiasedOracle(layer.codebook, decay=0.8), steps=200)


def test_debiased_after_one_step_is_batch_means_and_zeros(backend: str) -> None:
    layer = FeatureQuantizer(3, 32, ema="debiased", init="normal", decay=0.9)
    x = torch.randn(10, 3)
    indices = layer.quantize(x).indices
    for k in range(32):
        hit = x[indices == k]
        expected = hit.mean(dim=0) if len(hit) else torch.zeros(3)
        torch.testing.assert_close(layer.codebook[k], expected, rtol=1e-3, atol=1e-4)


def test_the_released_start_throws_unused_codes_far_away(backend: str) -> None:
    layer = FeatureQuantizer(8, 64, preset="fqgan")
    x = 3 + 0.1 * torch.randn(32, 8)
    indices = layer.quantize(x).indices
    unused = torch.ones(64, dtype=torch.bool)
    unused[indices] = False
    assert unused.any()
    assert layer.codebook[unused].abs().amax(dim=1).median() > 1e3


def test_outputs_loss_and_gradient_use_the_dictionary_before_the_update(backend: str) -> None:
    layer = FeatureQuantizer(4, 8, init="normal", commitment=0.25)
    before = layer.codebook.clone()
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = layer.quantize(x)
    assert not torch.equal(layer.codebook, before)
    q = before[out.indices].movedim(-1, 1)
    assert torch.equal(out.quantized, q)
    torch.testing.assert_close(out.loss, 0.25 * (q - x).square().flatten(1).mean(dim=1))
    grad_out, grad_loss = torch.randn_like(x), torch.randn(2)
    (gradient,) = torch.autograd.grad((out.quantized, out.loss), x, (grad_out, grad_loss))
    expected = grad_out + grad_loss.view(2, 1, 1, 1) * 2 * 0.25 * (x - q) / (4 * 9)
    torch.testing.assert_close(gradient, expected)


def test_straight_through_gradient_is_the_identity(backend: str) -> None:
    layer = FeatureQuantizer(6, 8, init="normal", commitment=0.0)
    x = torch.randn(3, 6, 5, 5, requires_grad=True)
    grad_out = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(layer(x), x, grad_out)
    assert torch.equal(gradient, grad_out)


def test_no_gradient_reaches_the_dictionary() -> None:
    layer = FeatureQuantizer(4, 8)
    assert not list(layer.parameters())
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_gradcheck_of_the_loss_to_second_order(backend: str) -> None:
    layer = FeatureQuantizer(3, 5, init="normal").eval()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        # float64 differences of a float32 loss are coarse, hence the tolerances below
        return layer.quantize(x).loss

    assert torch.autograd.gradcheck(loss, x, eps=1e-2, atol=1e-3)
    assert torch.autograd.gradgradcheck(loss, x, eps=1e-2, atol=1e-3)


@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
def test_gradient_penalty_is_finite_and_leaves_the_state_alone(backend: str, mode: str) -> None:
    layer = FeatureQuantizer(4, 8, mode=mode)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), layer, torch.nn.Conv2d(4, 1, 3))
    net(torch.randn(4, 3, 8, 8))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    real = torch.randn(4, 3, 8, 8, requires_grad=True)
    with frozen(net):
        (gradient,) = torch.autograd.grad((net(real) ** 2).sum(), real, create_graph=True)
        (gradient.square().sum() + commitment_loss(net)).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert net[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_perplexity_and_usage_of_batch_and_moving_counts(backend: str) -> None:
    layer = FeatureQuantizer(1, 4, init="normal", decay=0.5)
    layer.adopt(torch.tensor([[0.0], [10.0], [20.0], [30.0]]), torch.zeros(4), torch.zeros(4, 1))
    out = layer.quantize(torch.tensor([[0.0], [1.0], [9.0], [11.0]]))
    assert out.perplexity.item() == pytest.approx(2.0)
    assert layer.perplexity(moving=False) == pytest.approx(2.0)
    assert layer.usage(moving=False) == 0.5
    assert layer.usage() == 0.5
    assert layer.perplexity() == pytest.approx(2.0)
    assert layer.dead_codes() == 2


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40), dim=st.integers(1, 9), codes=st.integers(1, 20), seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)  # fmt: skip
def test_index_is_the_float64_argmin_and_output_its_code(
    n: int, dim: int, codes: int, seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    layer = FeatureQuantizer(dim, codes, init="normal").eval()
    layer.adopt(scale * torch.randn(codes, dim), torch.ones(codes), torch.zeros(codes, dim))
    x = scale * torch.randn(n, dim)
    out = layer.quantize(x)
    assert torch.equal(out.indices, float64_argmin(x, layer.codebook))
    assert torch.equal(out.quantized, layer.codebook[out.indices])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), codes=st.integers(1, 12))
def test_quantizing_twice_changes_nothing_more(seed: int, codes: int) -> None:
    torch.manual_seed(seed)
    layer = FeatureQuantizer(4, codes, init="normal").eval()
    once = layer(torch.randn(3, 4, 2, 2))
    assert torch.equal(layer(once), once)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_permuting_the_samples_permutes_everything(seed: int) -> None:
    torch.manual_seed(seed)
    layer = FeatureQuantizer(4, 8, init="normal").eval()
    x, order = torch.randn(6, 4, 3, 3), torch.randperm(6)
    out, permuted = layer.quantize(x), layer.quantize(x[order])
    assert torch.equal(permuted.quantized, out.quantized[order])
    assert torch.equal(permuted.indices, out.indices[order])
    assert torch.equal(permuted.loss, out.loss[order])


def test_moving_statistics_decay_without_hits(backend: str) -> None:
    layer = FeatureQuantizer(2, 3, decay=0.5)
    layer(torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]))
    counts = layer.ema_counts.clone()
    layer(torch.zeros(4, 2))
    nearest = int(layer.codebook.square().sum(dim=1).argmin())
    others = [k for k in range(3) if k != nearest]
    assert torch.equal(layer.ema_counts[others], counts[others] * 0.5)
    assert rows_of(torch.zeros(1, 2)).shape == (1, 2)
