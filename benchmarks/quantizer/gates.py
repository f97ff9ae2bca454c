"""Correctness gates of the quantizer's ops.

Each gate compares one op with its definition on awkward inputs: exact ties, a common offset, a tiny spread,
huge and tiny magnitudes, rows with NaN and Inf, masked rows, half precision, strided views, one channel, one
code, no rows. A gate returns the list of what is wrong, empty when the op is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quantizer import oracle, ours
from benchmarks.quantizer.problem import QUICK_SHAPES, FeatureProblem, FeatureShape
from fq_toolkit.kernels import ops


@dataclass(frozen=True)
class Awkward:
    """One gate input in the kernels' four-dimensional view."""

    name: str
    x: Tensor
    codebook: Tensor
    center: Tensor
    mask: Tensor | None = None

    @property
    def rows(self) -> np.ndarray:
        """(N, D) float64 copies of the rows."""
        return _by_row(self.x).double().numpy()

    @property
    def expected(self) -> np.ndarray:
        """Index of every row, -1 non-finite, -2 masked."""
        index = oracle.nearest_code(self.rows, self.codebook.cpu().numpy())
        if self.mask is not None:
            index = np.where(self.mask.cpu().numpy(), index, -2)
        return index


def awkward_inputs(device: str = "cpu") -> Iterator[Awkward]:
    """Yield the inputs of every gate."""
    generator = torch.Generator().manual_seed(11)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def entry(
        name: str, x: Tensor, codebook: Tensor, *, center: Tensor | None = None, mask: Tensor | None = None
    ) -> Awkward:
        middle = codebook.mean(dim=0) if center is None else center
        return Awkward(
            name,
            x.to(device),
            codebook.to(device),
            middle.to(device),
            None if mask is None else mask.to(device),
        )

    x, codebook = randn(3, 19, 9, 7), randn(37, 19)
    yield entry("ordinary", x, codebook)
    yield entry(
        "ties", torch.randint(-1, 2, (2, 6, 8, 8), generator=generator).float(), codebook.sign()[:, :6]
    )
    yield entry("twin codes", x, torch.cat([codebook, codebook.flip(0), codebook]))
    yield entry("common offset", 1000 + x, 1000 + codebook)
    yield entry("offset without centre", 1 + 1e-3 * x, 1 + 1e-3 * codebook, center=torch.zeros(19))
    yield entry("tiny spread", 1 + 1e-5 * x, 1 + 1e-5 * codebook)
    yield entry("huge", 1e18 * x, 1e18 * codebook)
    yield entry("tiny", 1e-22 * x, 1e-22 * codebook)
    hurt = x.clone()
    hurt[0, 3, 2, 2], hurt[1, 0, 0, 0], hurt[2, 18, 8, 6] = math.nan, math.inf, -math.inf
    yield entry("NaN and Inf rows", hurt, codebook)
    dead = codebook.clone()
    dead[0], dead[5, 2] = math.nan, math.inf
    yield entry("non-finite codes", x, dead, center=torch.zeros(19))
    mask = torch.rand(3 * 9 * 7, generator=generator) < 0.6
    yield entry("masked rows", hurt, codebook, mask=mask)
    yield entry("channels last", x.to(memory_format=torch.channels_last), codebook)
    yield entry("strided view", randn(3, 38, 9, 14)[:, ::2, :, ::2], codebook)
    yield entry("bfloat16", x.bfloat16(), codebook)
    yield entry("float16", x.half(), codebook)
    yield entry("float64", x.double() + 1e-12, codebook)
    yield entry("one channel", randn(2, 1, 5, 5), randn(11, 1))
    yield entry("one code", x, codebook[:1])
    yield entry("many codes", randn(1, 33, 8, 9), randn(1030, 33))
    yield entry("no rows", x[:0], codebook)


Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def _by_row(x: Tensor) -> Tensor:
    """Turn (B, C, P, Q) into (N, C) on the CPU."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2] * x.shape[3], x.shape[1]).cpu()


def _close(got: Tensor, wanted: np.ndarray, relative: float, scale: np.ndarray | float | None = None) -> bool:
    """Return whether values agree to ``relative`` of ``scale`` (default: of the wanted values)."""
    reference = np.abs(wanted) if scale is None else scale
    got64 = got.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(got64 - wanted) <= relative * reference + 1e-37
    return got64.shape == wanted.shape and bool((near | (got64 == wanted)).all())


def check_lookup(forward: Forward | None = None, device: str = "cpu") -> list[str]:
    """Check that indices are exactly those of the definition; output and squared errors follow from them."""
    run = forward or ops.quantize_forward
    wrong = []
    for case in awkward_inputs(device):
        out, indices, sq_error, _, _ = run(
            case.x, case.codebook, case.center, case.mask, 1.0, True, False, True
        )
        expected = case.expected
        got = indices.cpu().numpy()
        if got.shape != expected.shape or (got != expected).any():
            differing = int((got != expected).sum()) if got.shape == expected.shape else len(expected)
            wrong.append(f"lookup, {case.name}: {differing} of {len(expected)} indices are wrong")
            continue
        valid = expected >= 0
        codes = case.codebook.cpu()[torch.from_numpy(np.maximum(expected, 0))]
        source = _by_row(case.x)
        wanted_out = torch.where(torch.from_numpy(valid)[:, None], codes.to(case.x.dtype), source)
        got_out = _by_row(out)
        if not torch.equal(torch.nan_to_num(got_out, nan=7.0), torch.nan_to_num(wanted_out, nan=7.0)):
            wrong.append(f"lookup, {case.name}: the output is not the chosen code, or a skipped row changed")
        difference = np.where(valid[:, None], case.rows - codes.double().numpy(), 0.0)
        positions = case.x.shape[2] * case.x.shape[3]
        per_sample = np.square(difference).sum(axis=1).reshape(case.x.shape[0], positions).sum(axis=1)
        if (per_sample < 3e38).all() and not _close(sq_error, per_sample, 1e-5):
            wrong.append(f"lookup, {case.name}: squared errors are off")
    return wrong


def check_sums(forward: Forward | None = None, device: str = "cpu") -> list[str]:
    """Check that counts are exact, sums correct to rounding, and a repetition bitwise equal."""
    run = forward or ops.quantize_forward
    wrong = []
    for case in awkward_inputs(device):
        _, _, _, counts, sums = run(case.x, case.codebook, case.center, case.mask, 1.0, False, True, True)
        _, _, _, again_counts, again_sums = run(
            case.x, case.codebook, case.center, case.mask, 1.0, False, True, True
        )
        expected, rows = case.expected, case.rows
        valid = expected >= 0
        wanted = np.zeros(tuple(case.codebook.shape))
        size = np.zeros_like(wanted)
        np.add.at(wanted, expected[valid], rows[valid])
        np.add.at(size, expected[valid], np.abs(rows[valid]))
        wanted_counts = np.bincount(expected[valid], minlength=len(case.codebook))
        if not np.array_equal(counts.cpu().numpy(), wanted_counts):
            wrong.append(f"sums, {case.name}: counts are wrong")
        if not _close(sums, wanted, 1e-5, size):
            wrong.append(f"sums, {case.name}: sums are off")
        if not (torch.equal(counts, again_counts) and torch.equal(sums, again_sums)):
            wrong.append(f"sums, {case.name}: a repetition differs")
    return wrong


def check_backward(backward: Callable[..., Tensor] | None = None, device: str = "cpu") -> list[str]:
    """Check that the gradient is ``g + 2 e (x - q)`` on valid rows and ``g`` elsewhere."""
    run = backward or ops.quantize_backward
    wrong = []
    for case in awkward_inputs(device):
        if case.x.dtype in (torch.bfloat16, torch.float16):
            tolerance = float(torch.finfo(case.x.dtype).eps)
        else:
            tolerance = 1e-6
        if case.name in ("huge", "tiny", "non-finite codes"):
            continue  # covered by the lookup; the formula itself is scale free
        expected = case.expected
        indices = torch.from_numpy(expected).int().to(device)
        grad = torch.cos(torch.arange(case.x.numel(), device=device)).view(case.x.shape).to(case.x.dtype)
        error = torch.linspace(-0.5, 1.0, max(case.x.shape[0], 1), device=device)[: case.x.shape[0]]
        got = run(grad, error, case.x, case.codebook, indices)
        g = _by_row(grad).double().numpy()
        scale = error.cpu().double().numpy().repeat(len(expected) // max(case.x.shape[0], 1))[:, None]
        codes = case.codebook.cpu().double().numpy()[np.maximum(expected, 0)]
        residual = np.where((expected >= 0)[:, None], case.rows - codes, 0.0)
        flat = _by_row(got)
        reach = np.where((expected >= 0)[:, None], np.abs(case.rows) + np.abs(codes), 0.0)
        size = np.abs(g) + 2 * np.abs(scale) * reach
        if not _close(flat, g + 2 * scale * residual, tolerance, size):
            wrong.append(f"backward, {case.name}: the gradient is off")
    return wrong


def check_commit(commit: Callable[..., None] | None = None, device: str = "cpu") -> list[str]:
    """Check two commits against the formula of the moving averages in float64."""
    run = commit or ops.ema_commit_
    wrong = []
    generator = torch.Generator().manual_seed(5)
    for debias in (False, True):
        codebook = torch.randn(23, 7, generator=generator).to(device)
        counts, sums = torch.zeros(23, device=device), torch.zeros(23, 7, device=device)
        if not debias:
            counts, sums = counts + 1, codebook.clone()
        center, steps = torch.zeros(7, device=device), torch.zeros((), dtype=torch.int64, device=device)
        n, m = counts.cpu().double().numpy().copy(), sums.cpu().double().numpy().copy()
        for step in (1, 2):
            batch = torch.randint(0, 9, (23,), generator=generator).to(device)
            batch_sums = torch.randn(23, 7, generator=generator).to(device) * batch[:, None]
            run(codebook, counts, sums, center, steps, batch, batch_sums, 0.9, 1e-5, debias)
            n = 0.9 * n + 0.1 * batch.cpu().double().numpy()
            m = 0.9 * m + 0.1 * batch_sums.cpu().double().numpy()
            total = n.sum()
            correction = 1 - 0.9**step if debias else 1.0
            n_hat, m_hat, total_hat = n / correction, m / correction, total / correction
            wanted = m_hat / ((n_hat + 1e-5) / (total_hat + 23e-5) * total_hat)[:, None]
            for name, got, right in (
                ("counts", counts, n),
                ("sums", sums, m),
                ("codebook", codebook, wanted),
            ):
                if not _close(got, right, 1e-4, np.abs(right) + 1e-3):
                    wrong.append(f"commit, debias={debias}, step {step}: {name} are off")
            if int(steps) != step:
                wrong.append(f"commit, debias={debias}, step {step}: num_updates is {int(steps)}")
    return wrong


def check_layer(factory: Callable[[FeatureProblem], Any] | None = None, device: str = "cpu") -> list[str]:
    """Check one training step of the layer: output, gradient and moved dictionary."""
    wrong = []
    for shape in QUICK_SHAPES:
        problem = FeatureProblem(shape, device)
        module, call = (factory or ours.layer())(problem)
        module.train()
        x = problem.features.detach().requires_grad_()
        out, loss = call(x)
        (dx,) = torch.autograd.grad([out, loss], [x], [problem.grad, torch.ones_like(loss)])
        rows, codebook = problem.rows.cpu().double().numpy(), problem.codebook.cpu().numpy()
        index = oracle.nearest_code(rows, codebook)
        quantized = codebook[index].astype(np.float64)
        residual = rows - quantized

        def by_row(features: Tensor, shape: FeatureShape = shape) -> Tensor:
            moved = features if shape.layout == "blc" else features.movedim(1, -1)
            return moved.reshape(-1, shape.dim)

        if not _close(by_row(out), quantized, 0.0):
            wrong.append(f"layer, {shape.name}: the output is not the nearest code")
        weight = getattr(module, "commitment", 1.0)
        wanted = weight * np.square(residual).mean()
        if not _close(loss, np.asarray(wanted), 1e-5):
            wrong.append(f"layer, {shape.name}: the loss is {float(loss):.6g}, not {wanted:.6g}")
        gradient = by_row(problem.grad).cpu().double().numpy() + 2 * weight * residual / residual.size
        if not _close(by_row(dx), gradient, 1e-6, np.abs(gradient) + 1e-3):
            wrong.append(f"layer, {shape.name}: the gradient is off")
        if factory is None:
            n = 0.9 + 0.1 * np.bincount(index, minlength=shape.num_codes)
            m = 0.9 * codebook.astype(np.float64)
            np.add.at(m, index, 0.1 * rows)
            moved = m / ((n + 1e-5) / (n.sum() + shape.num_codes * 1e-5) * n.sum())[:, None]
            if not _close(module.state_dict()["codebook"], moved, 1e-5, np.abs(moved) + 1e-2):
                wrong.append(f"layer, {shape.name}: the dictionary did not move as it must")
    return wrong


GATES: dict[str, Callable[..., list[str]]] = {
    "lookup": check_lookup,
    "sums": check_sums,
    "backward": check_backward,
    "commit": check_commit,
    "layer": check_layer,
}
