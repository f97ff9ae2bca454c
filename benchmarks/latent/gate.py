"""The gate of the latent cases: no speed is reported for tokens or gradients that are wrong."""

from __future__ import annotations

import torch

from benchmarks.latent.generate import generate, original_loop
from benchmarks.latent.problem import TextProblem, TextShape

_LENGTH = 12


def check_latent(device: str = "cpu") -> list[str]:
    """Check the tokens against the original's loop, and that a latent matters and its absence does not.

    Each mode at batch 3: greedy tokens with a cache against the whole prefix again for each token; logits and
    tokens without a latent bit for bit against the model that nothing was injected into; a training step's
    gradient of the latent against the sum of those of its texts one by one.
    """
    problem = TextProblem(TextShape("gate", 3, _LENGTH, layers=2, width=64, vocabulary=64), device)
    plain = problem.decoder()
    without = generate(plain, problem.start, _LENGTH)
    wrong = []
    for mode in ("memory", "embedding", "both"):
        model = problem.decoder(mode)
        with torch.no_grad():  # a strong latent, so that a lost one cannot go unnoticed
            for weight in model.latent_injection.parameters():
                weight.mul_(30)
        tokens = generate(model, problem.start, _LENGTH, latent=problem.latents)
        for row in range(problem.shape.batch):
            one = problem.latents[row : row + 1]
            if not torch.equal(tokens[row], original_loop(model, problem.start[:1], one, _LENGTH)[0]):
                wrong.append(f"latent, {mode}: text {row} differs from the loop that recomputes the prefix")
        if torch.equal(tokens, without):
            wrong.append(f"latent, {mode}: the latent has no effect on the tokens")
        if not torch.equal(generate(model, problem.start, _LENGTH), without):
            wrong.append(f"latent, {mode}: without a latent the tokens are not those of the plain model")
        with torch.no_grad():
            if not torch.equal(model(problem.tokens).logits, plain(problem.tokens).logits):
                wrong.append(f"latent, {mode}: without a latent the logits are not those of the plain model")
        wrong += _gradient(problem, model, mode)
    return wrong


def _gradient(problem: TextProblem, model: torch.nn.Module, mode: str) -> list[str]:
    """Compare the gradients of a batch with those of each of its texts on its own, in float64."""
    model = model.double()
    tokens, latents = problem.tokens, problem.latents.double().requires_grad_()
    (together,) = torch.autograd.grad(_nll(model, tokens, latents), latents)
    for row in range(len(tokens)):
        one = latents[row : row + 1].detach().requires_grad_()
        (alone,) = torch.autograd.grad(_nll(model, tokens[row : row + 1], one), one)
        if not torch.allclose(together[row : row + 1], alone, rtol=1e-9, atol=1e-12):
            return [f"latent, {mode}: the gradient of a text's latent depends on the other texts"]
    return [] if bool(together.abs().amax(1).min() > 0) else [f"latent, {mode}: a latent has no gradient"]


def _nll(model: torch.nn.Module, tokens: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    logits = model(tokens, latent=latent).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
