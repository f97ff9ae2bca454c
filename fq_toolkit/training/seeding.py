"""Random state: one call seeds everything, one dict holds everything, for bit-exact resume."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fq_toolkit.training.errors import ConfigError


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices).

    Raises:
        ConfigError: for a seed that torch does not take.
    """
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"the seed is {seed}; expected a number of at most 64 bits")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits
    torch.manual_seed(seed)


def rank_seed(seed: int, rank: int) -> int:
    """Return the seed of one process: distinct streams that do not collide for neighbouring seeds."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint32)[0])


def rng_state() -> dict[str, Any]:
    """Return the random state of this process as tensors and JSON: python, numpy, torch, current GPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned. A GPU state is left out where there is no GPU."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def branch_rng(number: int) -> None:
    """Go on with other random numbers than would have come: the same ones for the same state and number.

    Args:
        number: of the branch, from 1.
    """
    seed_everything(int(torch.randint(2**31, (number,))[-1]))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run a block under its own seed and leave the outer random state as it was.

    Evaluation and previews use it, so that how often one looks does not change what is trained.
    """
    before = rng_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_rng_state(before)
