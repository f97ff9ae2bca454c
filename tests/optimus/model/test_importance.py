"""Importance sampling where log p(x) is known: a linear Gaussian, and a real model integrated on a grid."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fq_toolkit.optimus.model.importance import importance_estimate
from fq_toolkit.optimus.model.posterior import Posterior, prior_log_prob
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from tests.layers.latent.oracle import randomize
from tests.optimus.toys import LinearGaussian, toy_tokenizers

X = np.array([-2.0, -0.3, 0.0, 0.7, 3.1])


@pytest.mark.parametrize("draws", [1, 3, 100])
def test_with_the_exact_posterior_every_draw_gives_the_exact_likelihood(draws: int) -> None:
    model = LinearGaussian()
    found = importance_estimate(model, model.batch(X), draws=draws, rows=7)
    np.testing.assert_allclose(found.log_px.numpy(), model.log_px(X), rtol=1e-12, atol=1e-12)


def test_with_another_posterior_it_is_a_bound_that_tightens() -> None:
    model = LinearGaussian(shift=0.4, stretch=1.7)
    exact = model.log_px(X)
    q = model.posterior(*model.batch(X)[:2])
    true = LinearGaussian().posterior(*model.batch(X)[:2])
    ratio = (q.logvar - true.logvar).exp()
    gap = 0.5 * (ratio - 1 - ratio.log() + (q.mean - true.mean).square() / true.logvar.exp()).sum(1).numpy()
    repeated = np.repeat(X, 2000)
    bounds = []
    for draws in (1, 4, 16, 64):
        found = importance_estimate(model, model.batch(repeated), draws=draws, rows=1)
        bounds.append(found.log_px.numpy().reshape(len(X), -1))
    means = np.array([bound.mean(1) for bound in bounds])
    errors = np.array([bound.std(1) / 2000**0.5 for bound in bounds])
    np.testing.assert_array_less(abs(means[0] - (exact - gap)), 5 * errors[0])  # one draw: the ELBO
    assert (np.diff(means, axis=0) > 0).all()
    assert (means - 5 * errors < exact).all()
    assert (means[:2] < exact).all()
    assert (exact - means[-1] < 0.03).all()


def test_all_pieces_together_are_one_logsumexp() -> None:
    model, seen = LinearGaussian(shift=0.3), []
    plain = model.nll

    def recorded(z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen.append((z[:, 0].view(-1, len(X)), plain(z, ids, mask).view(-1, len(X))))
        return seen[-1][1].flatten()

    model.nll = recorded  # type: ignore[method-assign]
    found = importance_estimate(model, model.batch(X), draws=11, rows=20)  # pieces of 4, 4 and 3 draws
    assert [z.shape[0] for z, _ in seen] == [4, 4, 3]
    z, nll = (torch.cat(parts).numpy() for parts in zip(*seen, strict=True))
    q = model.posterior(*model.batch(X)[:2])
    mean, variance = q.mean[:, 0].numpy(), q.logvar.exp()[:, 0].numpy()
    weights = (
        np.exp(-nll) * np.exp(-z * z / 2) / (np.exp(-((z - mean) ** 2) / (2 * variance)) / variance**0.5)
    )
    np.testing.assert_allclose(found.log_px.numpy(), np.log(weights.mean(0)), rtol=1e-10)
    np.testing.assert_allclose(found.nll.numpy(), nll.mean(0), rtol=1e-12)


def test_tiny_likelihoods_do_not_vanish() -> None:
    model = LinearGaussian()
    far = np.array([500.0, -800.0])  # e^-140000 is no float
    found = importance_estimate(model, model.batch(far), draws=30)
    np.testing.assert_allclose(found.log_px.numpy(), model.log_px(far), rtol=1e-9)


def test_bad_counts_are_refused() -> None:
    model = LinearGaussian()
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        importance_estimate(model, model.batch(X), draws=0)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        importance_estimate(model, model.batch(X), rows=0)


def test_a_real_model_agrees_with_the_integral_over_its_latent() -> None:
    torch.manual_seed(0)
    vae = randomize(SentenceVAE.from_scratch(toy_tokenizers(), width=16, positions=16, latent_size=1), 0.3)
    texts = ["a man runs .", "two dogs"]
    grid = torch.linspace(-9, 9, 601)
    log_step = math.log(float(grid[1] - grid[0]))
    batch, draws = vae.batch(texts), 1500
    q = vae.encode(texts)
    expected, errors = [], []
    with torch.no_grad():
        for row in range(len(texts)):
            ids, mask = (tensor[row : row + 1].expand(len(grid), -1) for tensor in batch[2:4])
            log_px = -vae.nll(grid[:, None], ids, mask).double()
            log_joint = log_px + prior_log_prob(grid[:, None]).double()
            log_q = Posterior(q.mean[row], q.logvar[row]).log_prob(grid[:, None]).double()
            expected.append(float(log_joint.logsumexp(0)) + log_step)
            # The second moment of the weights, hence the error of the logarithm of their mean.
            moment = float((2 * log_joint - log_q).logsumexp(0)) + log_step - 2 * expected[-1]
            errors.append(math.sqrt(math.expm1(moment) / draws))
    assert max(errors) < 0.05, "the estimate must be sharp enough to tell right from wrong"
    found = vae.log_likelihood(texts, iw=draws, batch_size=512)
    assert found.dtype == torch.float64
    one_by_one = torch.cat([vae.log_likelihood([text], iw=draws, batch_size=100) for text in texts])
    for estimate in (found, one_by_one):
        np.testing.assert_array_less(np.abs(estimate.numpy() - expected), 4 * np.array(errors))
