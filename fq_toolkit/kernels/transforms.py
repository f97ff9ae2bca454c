"""Whether torch's function transforms are at work, which can look into torch's own operations only.

Inside `torch.func` (vmap, grad, jvp, jacrev ...) a tensor is a wrapper without memory of its own, and a
forward derivative travels beside the numbers: a kernel that reads a pointer would fail on the one and
silently lose the other.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def active() -> bool:
    """Whether the calling code runs inside a transform of `torch.func` or a level of forward derivatives."""
    # Neither has a public question; both are what torch itself asks before it runs an autograd.Function.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
