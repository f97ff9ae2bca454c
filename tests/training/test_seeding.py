"""Random state goes on after a round trip, and blocks and processes have their own."""

import random

import numpy as np
import pytest
import torch

from fq_toolkit.training.seeding import isolated_rng, rank_seed, rng_state, seed_everything, set_rng_state
from fq_toolkit.training.storage.packing import pack, unpack


def draw() -> tuple:
    return random.random(), float(np.random.randn()), float(torch.randn(())), random.gauss(0, 1)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_random_state_goes_on_after_a_round_trip(before: int) -> None:
    seed_everything(before)
    for _ in range(before):  # an odd number of Gaussians leaves one in reserve
        draw()
    saved = unpack(*pack(rng_state()))
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_rng_state(saved)
    assert [draw() for _ in range(3)] == expected


def test_isolated_block_leaves_the_outer_state_and_repeats() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with isolated_rng(5):
        first = draw()
    assert draw() == expected
    with isolated_rng(5):
        assert draw() == first


def test_ranks_have_their_own_seeds() -> None:
    seeds = {rank_seed(seed, rank) for seed in range(20) for rank in range(20)}
    assert len(seeds) == 400
