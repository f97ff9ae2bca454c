"""The gates let the definition pass and catch every deliberate mistake."""

import numpy as np
import pytest
import torch

from benchmarks.quantizer import gates, oracle
from fq_toolkit.kernels import reference


def _with(position, change):
    """The reference forward with one of its results changed."""

    def forward(*arguments):
        results = list(reference.quantize_forward(*arguments))
        results[position] = change(results[position])
        return tuple(results)

    return forward


def test_the_reference_passes():
    assert gates.check_lookup(reference.quantize_forward) == []
    assert gates.check_sums(reference.quantize_forward) == []
    assert gates.check_backward(reference.quantize_backward) == []
    assert gates.check_commit(reference.ema_commit_) == []


def test_one_wrong_index_turns_the_lookup_red():
    def spoil(indices):
        if indices.numel():
            indices[-1] = 0 if indices[-1] else 1
        return indices

    assert gates.check_lookup(_with(1, spoil))


def test_last_code_on_ties_turns_the_lookup_red():
    def forward(x, codebook, center, mask, *rest):
        out, indices, *others = reference.quantize_forward(x, codebook.flip(0), center, mask, *rest)
        return out, torch.where(indices >= 0, codebook.shape[0] - 1 - indices, indices), *others

    findings = gates.check_lookup(forward)
    assert any("twin codes" in finding for finding in findings)


def test_plain_float32_scores_turn_the_lookup_red():
    def forward(x, codebook, center, mask, strength, with_output, with_sums, exact):
        zero = torch.zeros_like(center)
        return reference.quantize_forward(x, codebook, zero, mask, strength, with_output, with_sums, False)

    findings = gates.check_lookup(forward)
    assert any("offset" in finding for finding in findings)


def test_half_a_unit_of_output_turns_the_lookup_red():
    assert gates.check_lookup(_with(0, lambda out: out * 1.000001))


@pytest.mark.parametrize(("position", "change"), [(3, lambda c: c + 1), (4, lambda s: s * 1.001)])
def test_wrong_counts_or_sums_turn_red(position, change):
    assert gates.check_sums(_with(position, change))


def test_a_random_order_of_summation_turns_red():
    generator = torch.Generator().manual_seed(0)
    jitter = _with(4, lambda sums: sums * (1 + 1e-7 * torch.randn(sums.shape, generator=generator)))
    assert any("repetition" in finding for finding in gates.check_sums(jitter))


def test_a_wrong_factor_turns_the_backward_red():
    def backward(grad_out, grad_error, x, codebook, indices):
        return reference.quantize_backward(grad_out, 0.999 * grad_error, x, codebook, indices)

    assert gates.check_backward(backward)


def test_a_forgotten_smoothing_turns_the_commit_red():
    def commit(codebook, counts, sums, *rest):
        reference.ema_commit_(codebook, counts, sums, *rest)
        codebook.copy_(sums / counts[:, None])

    assert gates.check_commit(commit)


def test_the_oracle_is_the_reference_definition():
    for case in gates.awkward_inputs():
        rows, codes = torch.from_numpy(case.rows), case.codebook
        if not torch.isfinite(rows).all() or not torch.isfinite(codes).all():
            continue
        expected = oracle.direct_distances(case.rows, codes.numpy())
        assert np.array_equal(reference.direct_distances(rows, codes).numpy(), expected, equal_nan=True)


def test_wrong_share_counts_wrong_indices():
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    codes = rows[:10] + 0.01
    right = oracle.nearest_code(rows, codes)
    assert oracle.wrong_share(right, rows, codes) == 0
    spoiled = right.copy()
    spoiled[:25] = (right[:25] + 1) % 10
    assert oracle.wrong_share(spoiled, rows, codes) == 0.25
