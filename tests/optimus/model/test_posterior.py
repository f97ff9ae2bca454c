"""The Gaussian posterior against torch.distributions and known closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from fq_toolkit.optimus.model.posterior import Posterior, prior_log_prob


def posterior(seed: int, batch: int = 3, size: int = 4, dtype: torch.dtype = torch.float64) -> Posterior:
    source = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, batch, size, generator=source, dtype=dtype) * 2
    return Posterior(mean, logvar)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_agrees_with_torch_distributions(seed: int) -> None:
    q = posterior(seed)
    reference = Normal(q.mean, q.std)
    standard = Normal(torch.zeros_like(q.mean), 1.0)
    z = torch.randn(5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(q.kl(), kl_divergence(reference, standard), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z).sum(-1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(prior_log_prob(z), standard.log_prob(z).sum(-1), rtol=1e-12, atol=1e-12)
    assert bool((q.kl() >= 0).all())


@given(offset=st.floats(-1e-3, 1e-3), spread=st.floats(-1e-3, 1e-3))
def test_kl_is_exact_and_not_negative_next_to_the_prior(offset: float, spread: float) -> None:
    q = Posterior(torch.tensor([[offset]]), torch.tensor([[spread]]))
    exact = Posterior(q.mean.double(), q.logvar.double()).kl()
    # mean^2 / 2 + logvar^2 / 4 to leading order: exp(logvar) - 1 - logvar in float32 would be all rounding
    expected = q.mean.double() ** 2 / 2 + q.logvar.double() ** 2 / 4
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=1e-16)
    assert float(q.kl()) >= 0
    torch.testing.assert_close(q.kl().double(), exact, rtol=1e-3, atol=1e-10)


def test_draws_have_the_mean_the_deviation_and_the_shape() -> None:
    q = posterior(1)
    draws = q.sample(torch.Generator().manual_seed(0), count=40_000)
    assert draws.shape == (40_000, 3, 4)
    error = (draws.mean(0) - q.mean).abs() / (q.std / 200)
    assert float(error.max()) < 4
    torch.testing.assert_close(draws.std(0), q.std, rtol=0.03, atol=0)
    assert q.sample().shape == (3, 4)


def test_a_generator_decides_the_draws() -> None:
    q = posterior(2)
    same = [q.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], q.sample(torch.Generator().manual_seed(8)))


def test_gradients_reach_mean_and_logvar() -> None:
    mean = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    logvar = torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)
    noise = Posterior(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)).sample(
        torch.Generator().manual_seed(3)
    )
    Posterior(mean, logvar).sample(torch.Generator().manual_seed(3)).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * (0.5 * logvar.detach()).exp() * noise)


@pytest.mark.parametrize("draw", [0, 1])
def test_the_mean_of_log_ratios_is_the_kl(draw: int) -> None:
    q = posterior(draw, size=2)
    z = q.sample(torch.Generator().manual_seed(draw), count=100_000)
    ratios = q.log_prob(z) - prior_log_prob(z)
    error = (ratios.mean(0) - q.kl().sum(1)).abs() / (ratios.std(0) / 100_000**0.5)
    assert float(error.max()) < 4
