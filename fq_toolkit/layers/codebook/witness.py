"""Who wrote a dictionary last: its layer, or somebody else behind the layer's back.

A codebook can be assigned, copied into, averaged or loaded by code that knows nothing of moving statistics.
The layer notes what its codebook was when it last wrote it, and looks before every lookup whether it still
is.  That costs the host a microsecond and the device nothing:

* another tensor, another memory or a higher version counter gives away assignments, loaders, ``copy_`` and
  indexing, on every device;
* on the CPU the bits are compared as well, for writes through ``.data`` or a NumPy array, which leave no
  other trace.  On a GPU that would wait for the device, so there such a write is seen by compiled graphs
  only, which compare on the device.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.cache
def _memcmp() -> Callable[[int, int, int], int] | None:
    """Return the C library's comparison of memory, or None where it is not found.

    It takes an eighth of the time of `torch.equal`, which every forward would spend.
    """
    try:
        function = ctypes.CDLL(None).memcmp
    except (AttributeError, OSError, TypeError):  # no such library under that name, as on Windows
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return function


def bits(codebook: Tensor) -> Tensor:
    """View a float32 codebook as integers, so that a NaN equals itself."""
    return codebook.view(torch.int32)


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # an inference tensor has none
        return 0


def _nobody() -> None:
    """Stand for a weak reference to nothing."""


class Witness:
    """What the state of one layer was when the layer last wrote it.

    Attributes:
        copy: ``(K, C)`` int32, the bits of the codebook; on GPUs kept up by compiled graphs only.
        doubtful: ``(K,)`` bool, codes that somebody else has written since the last update; None if none.
        counts_given: whether their counts were written as well.
        materialized: whether buffers have been assigned to a layer on the meta device.
    """

    def __init__(self) -> None:
        self.copy: Tensor | None = None
        self.doubtful: Tensor | None = None
        self.counts_given = False
        self.materialized = False
        self._owner: Callable[[], Tensor | None] = _nobody
        self._counts: Callable[[], Tensor | None] = _nobody
        self._place = 0
        self._versions = (0, 0, 0)

    def record(self, codebook: Tensor, counts: Tensor, sums: Tensor, *, content: bool) -> None:
        """Note that the layer has just written its state.

        Args:
            codebook: ``(K, C)``.
            counts: ``(K,)``.
            sums: ``(K, C)``.
            content: whether the content of the codebook has changed.
        """
        # Weak references, so that the witness keeps no replaced tensor alive. An address alone would not do:
        # the memory of a freed codebook is soon that of another tensor.
        if self._owner() is not codebook:
            self._owner = weakref.ref(codebook)
        if self._counts() is not counts:
            self._counts = weakref.ref(counts)
        self._versions = _version(codebook), _version(counts), _version(sums)
        if codebook.is_meta:
            return
        self._place, own = codebook.data_ptr(), self.copy
        if own is None or own.shape != codebook.shape or own.device != codebook.device:
            self.copy = bits(codebook).clone(memory_format=torch.contiguous_format)
        elif content and codebook.is_cpu and codebook.is_contiguous():
            # A fifth of the time of copy_, which each update of a small dictionary would feel.
            ctypes.memmove(own.data_ptr(), self._place, 4 * own.numel())
        elif content:
            own.copy_(bits(codebook))

    def knows(self, codebook: Tensor) -> bool:
        """Return whether nobody else has written this codebook, as far as can be seen without waiting."""
        if self._owner() is not codebook or _version(codebook) != self._versions[0]:
            return False
        if codebook.is_meta:
            return True
        if codebook.data_ptr() != self._place:
            return False
        return not self.compares(codebook) or self.same_bits(codebook)

    @staticmethod
    def compares(codebook: Tensor) -> bool:
        """Return whether the bits of this codebook can be compared without waiting for a device."""
        return codebook.is_cpu

    def same_bits(self, codebook: Tensor) -> bool:
        """Return whether a codebook on the CPU holds what the layer wrote."""
        own = self.copy
        if own is None or not own.is_cpu or own.shape != codebook.shape:
            return False
        compare = _memcmp()
        if compare is None or not codebook.is_contiguous():
            return torch.equal(bits(codebook), own)
        return compare(codebook.data_ptr(), own.data_ptr(), 4 * own.numel()) == 0

    def all_written(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> bool:
        """Return whether somebody wrote into all three tensors, as a broadcast does."""
        now = _version(codebook), _version(counts), _version(sums)
        return self._owner() is codebook and all(a != b for a, b in zip(now, self._versions, strict=True))

    def counts_written(self, counts: Tensor) -> bool:
        """Return whether somebody wrote into the moving counts."""
        return self._counts() is not counts or _version(counts) != self._versions[1]

    def changed_rows(self, codebook: Tensor) -> Tensor:
        """Return which codes are not what the layer wrote, ``(K,)`` bool; all where that is not known."""
        own = self.copy
        if own is None or own.shape != codebook.shape or own.device != codebook.device:
            return torch.ones(codebook.shape[0], dtype=torch.bool, device=codebook.device)
        return (bits(codebook) != own).any(dim=1)

    def doubt(self, codes: Tensor, counts_given: bool) -> None:
        """Note codes whose statistics the next training forward must look at, besides those noted before."""
        before = self.doubtful
        self.doubtful = codes if before is None or before.device != codes.device else before | codes
        self.counts_given |= counts_given

    def doubt_everything(self, codebook: Tensor) -> None:
        """Take every code for written by somebody else, its counts too, in compiled graphs as well."""
        self.doubtful = torch.ones(codebook.shape[0], dtype=torch.bool, device=codebook.device)
        self.counts_given = True
        if self.copy is not None:
            self.copy.bitwise_not_()  # bits never equal their complement, so every code differs

    def dismiss_doubts(self) -> None:
        """Note that every code has statistics that account for it."""
        self.doubtful, self.counts_given = None, False

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a layer makes a witness of its own: addresses and versions are those of the original.
        return {name: getattr(self, name) for name in ("doubtful", "counts_given", "materialized")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)
