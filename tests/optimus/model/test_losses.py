"""The loss against its definition in numpy: summed NLL, free bits, length weighting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.optimus.model.losses import free_bits, token_nll, vae_loss


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 4), length=st.integers(1, 6))
def test_token_nll_is_the_sum_over_what_counts(seed: int, batch: int, length: int) -> None:
    source = np.random.default_rng(seed)
    logits = source.normal(size=(batch, length, 7)) * 3
    targets = source.integers(0, 7, (batch, length))
    mask = source.integers(0, 2, (batch, length))
    expected = np.zeros(batch)
    for b in range(batch):
        for t in range(length):
            total = sum(math.exp(x) for x in logits[b, t])
            expected[b] -= mask[b, t] * math.log(math.exp(logits[b, t, targets[b, t]]) / total)
    found = token_nll(torch.tensor(logits), torch.tensor(targets), torch.tensor(mask))
    assert found.shape == (batch,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-5)


@given(
    values=st.lists(st.lists(st.floats(0, 5), min_size=3, max_size=3), min_size=1, max_size=4),
    threshold=st.floats(0, 4),
)
def test_free_bits_count_a_dimension_only_above_the_threshold(
    values: list[list[float]], threshold: float
) -> None:
    kl = torch.tensor(values, dtype=torch.float64)
    expected = [sum(value for value in row if value > threshold) for row in values]
    np.testing.assert_allclose(free_bits(kl, threshold).numpy(), expected, rtol=1e-12)


def test_below_the_threshold_there_is_neither_value_nor_gradient() -> None:
    kl = torch.tensor([[0.4, 0.6], [0.5, 0.1]], requires_grad=True)
    per_example = free_bits(kl, 0.5)
    torch.testing.assert_close(per_example, torch.tensor([0.6, 0.0]))
    per_example.sum().backward()
    assert kl.grad.tolist() == [[0.0, 1.0], [0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(
    beta=st.floats(0, 2), threshold=st.floats(0, 2), length_weighted=st.booleans(), seed=st.integers(0, 99)
)
def test_the_loss_is_reconstruction_and_beta_times_kl(
    beta: float, threshold: float, length_weighted: bool, seed: int
) -> None:
    source = np.random.default_rng(seed)
    nll, kl, tokens = source.uniform(1, 30, 3), source.uniform(0, 3, (3, 4)), source.integers(2, 9, 3)
    out = vae_loss(
        torch.tensor(nll), torch.tensor(kl), torch.tensor(tokens),
        beta=beta, threshold=threshold, length_weighted=length_weighted,
    )  # fmt: skip
    for i in range(3):
        divisor = tokens[i] + 1 if length_weighted else 1  # BOS counts, as in the original
        expected = nll[i] / divisor + beta * kl[i][kl[i] > threshold].sum()
        assert math.isclose(float(out.loss[i]), expected, rel_tol=1e-12)
        assert math.isclose(float(out.kl[i]), kl[i].sum(), rel_tol=1e-12), "the whole KL is reported"
    assert torch.equal(out.nll, torch.tensor(nll))
    assert torch.equal(out.tokens, torch.tensor(tokens))


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_bad_weights_are_refused(bad: float) -> None:
    parts = torch.ones(1), torch.ones(1, 2), torch.ones(1)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        vae_loss(*parts, beta=bad, threshold=0.0, length_weighted=False)
    with pytest.raises(ValueError, match="free_bits must be at least 0 nats"):
        vae_loss(*parts, beta=1.0, threshold=bad, length_weighted=False)
