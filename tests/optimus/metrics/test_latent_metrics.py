"""Mutual information and active units against brute force and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.optimus.metrics.latent_metrics import active_units, mutual_information
from fq_toolkit.optimus.model.posterior import Posterior


def random_posterior(seed: int, count: int = 6, size: int = 3, spread: float = 1.0) -> Posterior:
    source = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, count, size, generator=source)
    return Posterior(mean * spread, logvar)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(1, 9), chunk=st.integers(1, 10))
def test_equals_brute_force_over_the_same_draws(seed: int, count: int, chunk: int) -> None:
    q = random_posterior(seed, count)
    found = mutual_information(q, generator=torch.Generator().manual_seed(seed), chunk=chunk)
    mean, var = q.mean.double().numpy(), q.logvar.double().exp().numpy()
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    z = mean + var**0.5 * noise
    total = 0.0
    for i in range(count):
        densities = [
            math.prod(
                math.exp(-((z[i, d] - mean[j, d]) ** 2) / (2 * var[j, d]))
                / math.sqrt(2 * math.pi * var[j, d])
                for d in range(3)
            )
            for j in range(count)
        ]
        total += math.log(densities[i]) - math.log(sum(densities) / count)
    assert math.isclose(found, total / count, rel_tol=1e-9, abs_tol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 9), chunk=st.integers(1, 10))
def test_the_analytic_estimate_is_that_of_the_release(seed: int, count: int, chunk: int) -> None:
    q = random_posterior(seed, count)
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).double()
    mean, logvar = q.mean.double(), q.logvar.double()
    # He et al.: negative entropy of the posteriors, minus the log density of the aggregate at the draws
    negative_entropy = (-0.5 * 3 * math.log(2 * math.pi) - 0.5 * (1 + logvar).sum(1)).mean()
    z = mean + (0.5 * logvar).exp() * noise
    scaled = (z[:, None] - mean) ** 2 / logvar.exp()
    log_density = -0.5 * scaled.sum(2) - 0.5 * (3 * math.log(2 * math.pi) + logvar.sum(1))
    expected = negative_entropy - (log_density.logsumexp(1) - math.log(count)).mean()
    found = mutual_information(q, noise=noise, analytic=True, chunk=chunk)
    assert math.isclose(found, float(expected), rel_tol=1e-9, abs_tol=1e-10)


def test_both_estimates_have_the_same_mean() -> None:
    q = random_posterior(0, 8)
    draws = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    both = np.array([[mutual_information(q, noise=e, analytic=a) for a in (False, True)] for e in draws])
    difference = both[:, 0] - both[:, 1]
    assert abs(difference.mean()) < 4 * difference.std() / len(draws) ** 0.5
    assert both[:, 1].std() > both[:, 0].std()


@given(seed=st.integers(0, 99), count=st.integers(1, 20))
def test_equal_posteriors_tell_nothing(seed: int, count: int) -> None:
    one = random_posterior(seed, 1)
    q = Posterior(one.mean.expand(count, -1), one.logvar.expand(count, -1))
    assert abs(mutual_information(q)) < 1e-12


@given(count=st.integers(1, 40))
def test_posteriors_that_do_not_overlap_tell_which_sentence_it_was(count: int) -> None:
    mean = torch.arange(count)[:, None] * 1000.0
    assert math.isclose(
        mutual_information(Posterior(mean, torch.full((count, 1), -3.0))), math.log(count), abs_tol=1e-12
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), spread=st.floats(0.01, 100))
def test_never_above_the_logarithm_of_the_number_of_sentences(seed: int, spread: float) -> None:
    assert mutual_information(random_posterior(seed, 12, spread=spread)) <= math.log(12) + 1e-12


def test_place_and_scale_do_not_matter_however_extreme() -> None:
    q = random_posterior(3, 50)
    found = [
        mutual_information(
            Posterior(q.mean.double() * scale + place, q.logvar.double() + 2 * math.log(scale)),
            generator=torch.Generator().manual_seed(1),
        )
        for scale, place in ((1.0, 0.0), (1.0, 500.0), (1e-4, 3.0), (1e4, -7.0))
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-7)


def test_two_halves_give_the_integral() -> None:
    mean = torch.tensor([-1.0, 1.0]).repeat(2000)[:, None]
    found = mutual_information(Posterior(mean, torch.zeros_like(mean)))
    z = np.linspace(-12, 12, 20001)
    density = (np.exp(-((z + 1) ** 2) / 2) + np.exp(-((z - 1) ** 2) / 2)) / (2 * math.sqrt(2 * math.pi))
    entropy = -float((density * np.log(density)).sum() * (z[1] - z[0]))
    assert abs(found - (entropy - 0.5 * math.log(2 * math.pi * math.e))) < 0.03


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(2, 9), threshold=st.floats(0.001, 2))
def test_active_units_are_those_whose_mean_moves(seed: int, count: int, threshold: float) -> None:
    q = random_posterior(seed, count, 5)
    variances = np.var(q.mean.double().numpy(), axis=0, ddof=1)
    assert active_units(q, threshold=threshold) == int((variances > threshold).sum())
    shifted = Posterior(q.mean.double() + 100, q.logvar.double())
    assert active_units(shifted, threshold=threshold) == active_units(q, threshold=threshold)


def test_a_collapsed_space_has_no_active_unit_and_one_sentence_is_too_few() -> None:
    assert active_units(Posterior(torch.full((5, 4), 3.0), torch.zeros(5, 4))) == 0
    with pytest.raises(ValueError, match="at least two sentences, got one"):
        active_units(random_posterior(0, 1))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        mutual_information(random_posterior(0), chunk=0)
