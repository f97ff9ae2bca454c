"""The order of rows: permutations that two integers continue, shared out among processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.training.sampling_order import ShuffledIndices


@given(
    size=st.integers(4, 60),
    batch=st.integers(1, 4),
    taken=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation_and_continues(size: int, batch: int, taken: int, seed: int) -> None:
    order = ShuffledIndices(size, batch, seed=seed)
    per_epoch = size // batch
    epoch = torch.cat([order.next() for _ in range(per_epoch)])
    assert len(epoch.unique()) == len(epoch) == per_epoch * batch
    for _ in range(taken):
        order.next()
    other = ShuffledIndices(size, batch, seed=seed)
    other.load_state_dict(order.state_dict())
    for _ in range(5):
        assert torch.equal(order.next(), other.next())


@given(world=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_processes_share_out_what_one_would_take(world: int, seed: int) -> None:
    ranks = [ShuffledIndices(50, 3, seed=seed, rank=rank, world=world) for rank in range(world)]
    alone = ShuffledIndices(50, 3 * world, seed=seed)
    for _ in range(20):
        assert torch.equal(torch.cat([order.next() for order in ranks]), alone.next())


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match="7 rows do not fill a batch of 4 for 2"):
        ShuffledIndices(7, 4, seed=0, world=2)
