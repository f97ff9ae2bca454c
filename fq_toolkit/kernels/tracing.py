"""What torch does with the code that runs: exports it, or transforms it.

Inside `torch.func` (vmap, grad, jvp, jacrev ...) a tensor is a wrapper without memory of its own, and a
forward derivative travels beside the numbers: a kernel that reads a pointer would fail on the one and
silently lose the other.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def under_export() -> bool:
    """Return whether `torch.export` traces the calling code.

    Not `torch.compiler.is_exporting`, which torch 2.11 also takes for true inside `torch.compile`.
    """
    return torch.compiler._is_exporting_flag


def under_transform() -> bool:
    """Return whether a transform of `torch.func` or a level of forward derivatives runs the calling code."""
    # Neither has a public question; both are what torch itself asks before it runs an autograd.Function.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
