"""The order of the data: everything once an epoch, near lengths together, continued exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.optimus.data.bucketing import POOL, BucketedIndices

SIZES = st.integers(1, 300)


def lengths(size: int) -> list[int]:
    return torch.randint(3, 40, (size,), generator=torch.Generator().manual_seed(size)).tolist()


@given(SIZES, st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**40))
def test_an_epoch_has_every_row_at_most_once_and_leaves_less_than_a_batch(
    size: int, batch: int, world: int, seed: int
) -> None:
    if size < batch * world:
        with pytest.raises(ValueError, match="do not fill a batch"):
            BucketedIndices(lengths(size), batch, seed=seed, world=world)
        return
    ranks = [BucketedIndices(lengths(size), batch, seed=seed, rank=r, world=world) for r in range(world)]
    count = size // (batch * world)
    seen = torch.cat([order.next() for _ in range(count) for order in ranks])
    assert len(set(seen.tolist())) == len(seen) == count * batch * world


@given(SIZES, st.integers(0, 40), st.integers(0, 40))
def test_it_continues_where_it_stopped(size: int, before: int, after: int) -> None:
    batch = min(size, 3)
    order, other = (BucketedIndices(lengths(size), batch, seed=5) for _ in range(2))
    for _ in range(before):
        order.next()
    other.load_state_dict(order.state_dict())
    for _ in range(after % 11):
        assert torch.equal(order.next(), other.next())


def test_batches_are_of_near_length_and_in_no_order_of_length() -> None:
    size, batch = 50 * 8 * 4, 8
    all_lengths = torch.tensor(lengths(size))
    order = BucketedIndices(all_lengths, batch, seed=0)
    rows = torch.stack([order.next() for _ in range(size // batch)])
    spread = all_lengths[rows].amax(1) - all_lengths[rows].amin(1)
    assert spread.float().mean() < 3 * 37 / POOL  # a pool has every length; a batch is 1/POOL of it
    means = all_lengths[rows].float().mean(1)
    steps = (means[1:] - means[:-1]).abs().mean()
    assert steps > 5  # sorted, neighbours would differ by about 37 / POOL
    second = torch.stack([order.next() for _ in range(size // batch)])
    company = {frozenset(row.tolist()) for row in rows}
    assert not company & {frozenset(row.tolist()) for row in second}
