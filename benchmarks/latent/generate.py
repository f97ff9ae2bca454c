"""Greedy generation: with a latent, without one, and by the loop of the original release.

How much faster a cache is than recomputing the prefix depends on the size of the model.  Let W be the weights
in the layers and the head (12 layers width^2 + vocabulary width), and c what a forward takes whatever its
length: the dispatch of its operations, and one reading of 4 W bytes.  T tokens of one text take about

- with a cache: T c, as one token's 2 W operations hide behind the reading of the weights;
- in the loop: T c + T (T + 1) W / F, as it computes all positions of the prefix and all their logits,
  at the rate F of matrix products.

The ratio is 1 + (T + 1) W / (F c).  Where dispatch dominates c, it grows with W; where reading does, c is
4 W / bandwidth and the ratio no longer depends on the size: 1 + (T + 1) bandwidth / (4 F).  W is 15.5 million
for 6 layers of width 384 and 124 million for GPT-2 small, the size that was released, whose dispatch is only
twice as long, so that it has a row of its own.  Attention adds about T / (12 width) to the operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Contender, Task
from benchmarks.latent.problem import TextProblem
from benchmarks.machine import package_version

PLAIN = "plain GPT-2"
INJECTED = "inject_latent"
ORIGINAL = "original loop"
#: The loop is several times as slow as the others, and its ratio far from any limit: it takes part in one
#: round of so many, so that the two that differ by percents get many.
_LOOP_ROUNDS = 5


def versions() -> str:
    """Return what the rows of our contenders note."""
    return f"sdpa, {package_version('transformers')}"


@torch.no_grad()
def original_loop(model: Any, start: Tensor, latent: Tensor, length: int) -> Tensor:
    """Decode greedily as the original release does: one text, the whole prefix again for each token.

    Args:
        model: an injected decoder.
        start: (1, 1) the BOS token.
        latent: (1, nz).
        length: tokens to generate.

    Returns:
        (1, 1 + length) tokens.
    """
    tokens = start
    for _ in range(length):
        logits = model(
            tokens, latent=latent, use_cache=False
        ).logits  # of all positions; only the last is used
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens


def generate(model: Any, start: Tensor, length: int, **latent: Tensor) -> Tensor:
    """Return greedy tokens (B, 1 + length) of transformers' own generate."""
    mask = torch.ones_like(start)
    return model.generate(
        start, attention_mask=mask, max_new_tokens=length, do_sample=False, use_cache=True, **latent
    )


def _plain(problem: TextProblem) -> Task:
    model, start, length = problem.decoder(shared=True), problem.start, problem.shape.length
    return Task(lambda _: generate(model, start, length))


def _injected(problem: TextProblem) -> Task:
    model, start, length = problem.decoder("memory", shared=True), problem.start, problem.shape.length
    return Task(lambda _: generate(model, start, length, latent=problem.latents), note=versions())


def _original(problem: TextProblem) -> Task:
    """Decode one text per call, each in turn: the loop has no batches, so B texts take B times as long."""
    model, length = problem.decoder("memory", shared=True), problem.shape.length
    turns: Iterator[int] = cycle(range(problem.shape.batch))

    def run(row: int) -> Tensor:
        return original_loop(model, problem.start[:1], problem.latents[row : row + 1], length)

    count = problem.shape.batch
    note = (
        f"times {count}: the loop takes one text after another, and each sample is one text"
        if count > 1
        else ""
    )
    return Task(run, setup=lambda: next(turns), scale=count, note=note, every=_LOOP_ROUNDS)


CONTENDERS = (
    Contender(INJECTED, _injected, kind="ours", package="fq-toolkit"),
    Contender(PLAIN, _plain, kind="base", package="transformers"),
    Contender(ORIGINAL, _original, package="transformers"),
)
