"""Call the ops with arguments that do not go together, in a process of its own that may crash.

``python fuzz_worker.py OP CASES SEED`` changes one or two arguments of a valid call at a time, and wants each
call refused with an ordinary error or answered as plain torch answers it.  Inputs lie between NaNs, so that
a read beyond one of them shows in the answer.  Prints how many calls were refused and answered.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fq_toolkit import quantize
from fq_toolkit.kernels import decode, ops, reference

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)


def guarded(tensor: Tensor) -> Tensor:
    """The same values, with NaN (or a huge number) on both sides of them in memory."""
    poison = float("nan") if tensor.is_floating_point() else 1 if tensor.dtype == torch.bool else 10**8
    flat = torch.full((tensor.numel() + 512,), poison, dtype=tensor.dtype)
    inside = flat[256:-256].view(tensor.shape)
    return inside.copy_(tensor)


def resized(draw: random.Random, tensor: Tensor) -> Tensor:
    """One axis longer, shorter, empty or away."""
    if tensor.ndim == 0:
        return tensor.expand(draw.choice([0, 1, 3])).clone()
    axis, kind = draw.randrange(tensor.ndim), draw.randrange(4)
    if kind == 0:
        return torch.cat([tensor] * draw.choice([2, 9]), dim=axis)
    if kind == 1:
        return tensor.narrow(axis, 0, draw.randrange(tensor.shape[axis] + 1)).clone()
    return tensor.unsqueeze(axis) if kind == 2 else tensor.select(axis, 0).clone()


def other_values(draw: random.Random, tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    if changed.numel():
        wild = [-(2**31), -7, -1, 0, 10**6, 2**31 - 1]
        if changed.is_floating_point():
            wild = [float("nan"), float("inf"), -float("inf"), 1e30, 0.0]
        changed.view(-1)[draw.randrange(changed.numel())] = draw.choice(wild)
    return changed


def other_strides(draw: random.Random, tensor: Tensor) -> Tensor:
    if tensor.ndim == 0:
        return tensor
    if draw.random() < 0.5:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    return tensor.narrow(draw.randrange(tensor.ndim), 0, 1).expand_as(tensor)


CHANGES: tuple[Callable[[random.Random, Tensor], Any], ...] = (
    resized,
    resized,
    other_values,
    other_strides,
    lambda draw, tensor: tensor.to(draw.choice(DTYPES)),
    lambda draw, tensor: tensor.to("meta"),
    lambda draw, tensor: tensor.to_sparse() if tensor.ndim else tensor,
    lambda draw, tensor: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor,
    lambda draw, tensor: torch._neg_view(tensor) if tensor.is_floating_point() else tensor,
    lambda draw, tensor: tensor.new_empty(draw.choice([(0,), (0, 0), (0, 5), (5, 0), (1, 0, 1, 1)])),
    lambda draw, tensor: draw.choice([None, 3, "x", tensor.tolist()]),
)


def features(draw: random.Random) -> tuple[Tensor, Tensor]:
    batch, dim, width = draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 20)
    return torch.randn(batch, dim, draw.randint(1, 2), width), torch.randn(draw.randint(1, 20), dim)


def forward_case(draw: random.Random) -> list[Any]:
    x, codebook = features(draw)
    mask = torch.rand(x.numel() // x.shape[1]) > 0.3 if draw.random() < 0.5 else None
    flags = [draw.random() < 0.7 for _ in range(3)]
    strength = draw.choice([None, torch.tensor(0.5, dtype=torch.float64)])
    return [x, codebook, codebook.mean(0), mask, strength, *flags]


def backward_case(draw: random.Random) -> list[Any]:
    x, codebook = features(draw)
    indices = torch.randint(-2, len(codebook), (x.numel() // x.shape[1],), dtype=torch.int32)
    return [torch.randn_like(x), torch.randn(len(x)), x, codebook, indices]


def commit_case(draw: random.Random) -> list[Any]:
    codebook = features(draw)[1]
    counts = torch.randint(0, 5, (len(codebook),))
    state = [codebook, torch.ones(len(codebook)), codebook.clone(), codebook.mean(0), torch.tensor(3)]
    return [*state, counts, torch.randn_like(codebook), draw.choice([0.9, 0.0, 1.0, -1.0]), 1e-5, True]


def functional_case(draw: random.Random) -> list[Any]:
    x, codebook = features(draw)
    mask = torch.rand(x.numel() // x.shape[1]).view(x[:, 0].shape) > 0.3
    return [x, codebook, mask if draw.random() < 0.5 else None]


def decode_case(draw: random.Random) -> list[Any]:
    batch, groups, shared, length, dim = (draw.randint(1, 4) for _ in range(5))
    text = torch.randn(2, batch, groups, length, 4 * dim)
    slots = torch.randn(2, draw.choice([1, batch]), groups, draw.randint(0, 2), 4 * dim)
    return [torch.randn(batch, groups * shared, 1, 4 * dim), *text, *slots]


def functional(x: Tensor, codebook: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return quantize(x, codebook, mask=mask)


def attend(query: Tensor, key: Tensor, value: Tensor, slot_key: Tensor, slot_value: Tensor) -> Tensor:
    return decode.attend_one(query, key, value, (slot_key, slot_value), scale=None)


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, slot_key: Tensor, slot_value: Tensor) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([slot.expand(len(text), -1, -1, -1), text], dim=2).repeat_interleave(shared, dim=1)
        for slot, text in ((slot_key, key), (slot_value, value))
    )
    weights = (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights @ values).transpose(1, 2)


def forward_plainly(*arguments: Any) -> tuple[Tensor, ...]:
    x, codebook, center, mask, strength, *flags = arguments
    blend = 1.0 if strength is None else float(strength)
    return reference.quantize_forward(x, codebook, center, mask, blend, *flags)


def by_reference(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        before = os.environ.get("FQ_TOOLKIT_BACKEND")
        os.environ["FQ_TOOLKIT_BACKEND"] = "reference"
        try:
            return run(*arguments)
        finally:
            del os.environ["FQ_TOOLKIT_BACKEND"]
            if before is not None:
                os.environ["FQ_TOOLKIT_BACKEND"] = before

    return call


#: Of each op: a valid call, what is called, what it is compared with.
CASES: dict[str, tuple[Callable[[random.Random], list[Any]], Callable[..., Any], Callable[..., Any]]] = {
    "quantize_forward": (forward_case, ops._quantize_forward, forward_plainly),
    "quantize_backward": (backward_case, ops._quantize_backward, reference.quantize_backward),
    "ema_commit_": (commit_case, ops.ema_commit_, reference.ema_commit_),
    "quantize": (functional_case, functional, by_reference(functional)),
    "decode": (decode_case, attend, attend_plainly),
}


def results(run: Callable[..., Any], arguments: list[Any]) -> list[Tensor]:
    """What a call returns or changes."""
    found = run(*arguments)
    if found is None:
        return [value for value in arguments if isinstance(value, Tensor)]
    return [found] if isinstance(found, Tensor) else list(found)


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def run_case(op: str, draw: random.Random) -> bool:
    """Whether the call was answered, and then rightly."""
    make, run, expected = CASES[op]
    arguments = [guarded(value) if isinstance(value, Tensor) else value for value in make(draw)]
    # Not an op of torch, hence called with tensors only; what softmax makes of infinities is not its matter.
    changes = [change for change in CHANGES[:-1] if change is not other_values] if op == "decode" else CHANGES
    for _ in range(draw.choice([0, 1, 1, 1, 2])):
        position = draw.choice([i for i, value in enumerate(arguments) if isinstance(value, Tensor)] or [0])
        if isinstance(arguments[position], Tensor):
            try:
                arguments[position] = draw.choice(changes)(draw, arguments[position])
            except REFUSALS:  # torch itself cannot make such a tensor
                continue
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    real = [value for value in tensors if value.layout == torch.strided and not value.is_meta]
    comparable = len(real) == len(tensors)
    before = [copied(value) for value in arguments] if comparable else arguments
    try:
        answers = results(run, arguments)
    except REFUSALS:
        return False
    if not comparable:
        assert all(answer.is_meta for answer in answers), "answered without the values of its inputs"
        return True
    if op == "quantize_forward" and not arguments[-1]:  # a fast lookup may err as far as its center is off
        return True
    for answer, truth in zip(answers, results(expected, before), strict=True):
        tolerance = (
            {"rtol": 2e-2, "atol": 2e-2} if truth.dtype.itemsize == 2 else {"rtol": 1e-3, "atol": 1e-4}
        )
        torch.testing.assert_close(answer.detach(), truth, equal_nan=True, **tolerance)
    return True


def main(op: str, cases: int, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    answered = 0
    for case in range(cases):
        draw = random.Random(f"{op} {seed} {case}")
        torch.manual_seed(case)
        try:
            answered += run_case(op, draw)
        except BaseException:
            sys.stderr.write(f"case {case} of {op}\n")
            raise
    sys.stdout.write(f"{cases - answered} {answered}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
