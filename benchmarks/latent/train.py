"""An optimizer step of a decoder with a latent in it, and of the same decoder without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contender import Contender, Task
from benchmarks.latent.generate import INJECTED, PLAIN, versions
from benchmarks.latent.problem import TextProblem


def _step(mode: str | None) -> Callable[[TextProblem], Task]:
    """Return a task of forward, backward and AdamW in training mode."""

    def build(problem: TextProblem) -> Task:
        model = problem.decoder(mode).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        latent = {"latent": problem.latents} if mode else {}

        def run(_: object) -> Tensor:
            loss = model(problem.tokens, labels=problem.tokens, use_cache=False, **latent).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Task(run, note=versions() if mode else "")

    return build


CONTENDERS = (
    Contender(INJECTED, _step("memory"), kind="ours", package="fq-toolkit"),
    Contender(PLAIN, _step(None), kind="base", package="transformers"),
)
