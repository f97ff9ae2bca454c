"""Which axis of a tensor holds channels, and what an output is made of: asked of the operations that ran.

A shape does not tell ``(B, C, T)`` from ``(B, L, C)``; the operation that made it does.  `Provenance` follows
both questions through one forward pass, below all modules, so that permutations, views and functional code
count as well as layers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations whose results have their channels on axis 1, whatever went in.
_FIRST = {
    *("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "im2col"),
    *("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"),
    *("_native_batch_norm_legit_no_training", "native_group_norm", "pixel_shuffle", "pixel_unshuffle"),
}
#: Operations whose results have them on the last axis.
_LAST = {"addmm", "mm", "linear", "_addmm_activation", "mkldnn_linear", "embedding"}
#: Operations that put weights between a result and what went in.
_WEIGHTED = {*_LAST, "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"}
#: Operations in which two features meet, so that neither of them is the result.
_PRODUCTS = {"mul", "bmm", "baddbmm", "dot", "mv"}
#: Operations that may change how many channels there are, but not where.
_RESIZING = {
    *("cat", "slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "narrow"),
    *("glu", "index_select", "repeat", "constant_pad_nd"),
}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_REDUCTIONS = {"select", "squeeze", "mean", "sum", "amax", "amin"}

#: In place of an axis: the channels are among the rows of a matrix, as before a linear layer over positions.
_MERGED = -2
#: And the result of that layer, which may be said to have its channels on either axis.
_MIXED = -1

Place = tuple[int, tuple[int, ...], tuple[int, ...]]


def place_of(x: Tensor) -> Place:
    """Return what identifies a view as long as all tensors live, also where torch has wrapped it again."""
    return x.data_ptr(), tuple(x.shape), x.stride()


class _Origin(NamedTuple):
    """Where a tensor comes from: its channel axis if known, and what it was made from without weights."""

    axis: int | None
    through: frozenset[Place]


class Provenance(TorchDispatchMode):
    """Follows channel axes and weights through the operations inside its block."""

    def __init__(self) -> None:
        super().__init__()
        self._origins: dict[Place, _Origin] = {}
        self._alive: list[Tensor] = []  # places are of living tensors only
        self._consumed: set[Place] = set()

    def axis(self, x: Tensor) -> int | None:
        """Return the channel axis of a tensor of this pass, None where no operation tells."""
        axis = self._noted(x)
        return None if axis is None or axis < 0 else axis

    def is_mixed(self, x: Tensor) -> bool:
        """Return whether a linear layer ran over another axis than that of the channels."""
        return self._noted(x) == _MIXED

    def _noted(self, x: Tensor) -> int | None:
        origin = self._origins.get(place_of(x))
        return None if origin is None else origin.axis

    def tell(self, x: Tensor, axis: int) -> None:
        """Note the channel axis of a tensor that a module is known to return."""
        if _has_place(x):
            origin = self._origins.get(place_of(x), _Origin(None, frozenset({place_of(x)})))
            self._origins[place_of(x)] = origin._replace(axis=axis)
            self._alive.append(x)

    def made_from(self, x: Tensor) -> frozenset[Place]:
        """Return the tensors that became ``x`` without weights in between, itself among them.

        Empty where weights were applied to ``x`` later on: then it is a stop on the way, not an end.
        """
        origin = self._origins.get(place_of(x))
        return frozenset() if origin is None or place_of(x) in self._consumed else origin.through

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note where its results come from."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        inputs = [x for x in tree_leaves((args, kwargs or {})) if _has_place(x)]
        known = [origin for x in inputs if (origin := self._origins.get(place_of(x))) is not None]
        through = frozenset[Place]().union(*(origin.through for origin in known))
        if name in _WEIGHTED:
            self._consumed |= through
        if name in _WEIGHTED or (name in _PRODUCTS and len(known) > 1):
            through = frozenset()
        for result in tree_leaves(out):
            if _has_place(result):
                axis = self._axis_of(name, inputs, args, result)
                self._alive.append(result)
                self._origins[place_of(result)] = _Origin(axis, through | {place_of(result)})
        return out

    def _axis_of(self, name: str, inputs: list[Tensor], args: Any, result: Tensor) -> int | None:
        if name in _FIRST:
            return 1 if result.ndim > 1 else None
        noted = {self._noted(x) for x in inputs}
        if name in _LAST:
            return _MIXED if noted & {_MERGED, _MIXED} else result.ndim - 1
        known = [(x, axis) for x in inputs if (axis := self.axis(x)) is not None]
        if not known:
            # Normalization over just the last axis is over channels; over several axes it tells nothing.
            over_last = name in ("native_layer_norm", "_fused_rms_norm") and len(args[1]) == 1
            return result.ndim - 1 if over_last else _MIXED if _MIXED in noted else None
        source, axis = known[0]
        if name == "permute":
            return [d % source.ndim for d in args[1]].index(axis)
        if name in ("transpose", "t"):
            a, b = (0, source.ndim - 1) if name == "t" else (args[1] % source.ndim, args[2] % source.ndim)
            return {a: b, b: a}.get(axis, axis)
        if name in _VIEWS:
            seen = _through_view(tuple(source.shape), axis, tuple(result.shape))
            cut = seen is None and axis < source.ndim - 1 and source.shape[-1] == result.shape[-1]
            return _MERGED if cut else seen
        if name == "unsqueeze":
            return axis + (axis >= args[1] % result.ndim)
        if name in _REDUCTIONS and result.ndim < source.ndim:
            return _without(source, axis, args, result.ndim)
        if name in ("bmm", "baddbmm"):  # rows are those of the first factor, columns those of the second
            first, second = self.axis(args[-2]), self.axis(args[-1])
            return _only({axis for axis, kept in ((first, 1), (second, 2)) if axis == kept})
        # Everything else keeps its axes: pointwise operations, pooling, padding, resampling, joining.  Where
        # features with channels on different axes meet, nothing is known.
        kept = [(x, a) for x, a in known if x.ndim == result.ndim]
        return _only({a for x, a in kept if name in _RESIZING or x.shape[a] == result.shape[a]})


def _only(axes: set[int]) -> int | None:
    """Return the one axis in a set, None where there is none or another."""
    return next(iter(axes)) if len(axes) == 1 else None


def _has_place(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.numel() > 0 and not x.is_meta


def _through_view(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Return the axis of a view that holds what an axis held before it; None where that was cut or merged."""
    behind = math.prod(before[axis + 1 :])
    fits = [i for i, size in enumerate(after) if size == before[axis] and math.prod(after[i + 1 :]) == behind]
    return fits[0] if len(fits) == 1 else None


def _without(source: Tensor, axis: int, args: Any, ndim: int) -> int | None:
    """Return where an axis is when others are taken out; None where it is itself, or where all were."""
    if len(args) > 1 and args[1] is not None:
        gone = {d % source.ndim for d in (args[1] if isinstance(args[1], list | tuple) else [args[1]])}
    else:
        gone = {i for i, size in enumerate(source.shape) if size == 1}
    if axis in gone or source.ndim - len(gone) != ndim:
        return None
    return axis - sum(d < axis for d in gone)
