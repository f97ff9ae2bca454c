import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.training.errors import CheckpointError
from fq_toolkit.training.storage.packing import pack, unpack

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
tensors = st.builds(
    lambda dtype, size: torch.arange(size).to(dtype), dtypes, st.integers(min_value=0, max_value=4)
)
keys = st.text(max_size=4) | st.integers(min_value=-3, max_value=3)
states = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@given(states)
@settings(max_examples=150, deadline=None)
def test_unpack_undoes_pack_through_json(state: object) -> None:
    tensors, rest = pack(state)
    assert same(state, unpack(tensors, json.loads(json.dumps(rest))))


def test_packed_tensors_are_contiguous_and_share_nothing() -> None:
    shared = torch.randn(4, 4)
    tensors, _ = pack({"a": shared, "b": shared.t(), "c": shared[1:]})
    assert all(value.is_contiguous() for value in tensors.values())
    assert len({value.data_ptr() for value in tensors.values()}) == 3
    assert torch.equal(tensors["b"], shared.t())


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match="model/head: object"):
        pack({"model": {"head": object()}})


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match="'a/b'"):
        unpack({}, pack({"a": {"b": torch.ones(1)}})[1])


def test_names_that_collide_stay_apart() -> None:
    state = {"a/b": torch.tensor(1.0), "a": {"b": torch.tensor(2.0)}}
    back = unpack(*pack(state))
    assert (float(back["a/b"]), float(back["a"]["b"])) == (1.0, 2.0)
