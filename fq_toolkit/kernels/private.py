"""The private names of torch that the kernels and the quantizer need, each with its way out.

They were looked up in torch 2.11 to 2.13.  Where a name is gone, the function does what its docstring says.

Inside `torch.func` (vmap, grad, jvp, jacrev ...) a tensor is a wrapper without memory of its own, and a
forward derivative travels beside the numbers: a kernel that reads a pointer would fail on the one and
silently lose the other.  That is why it must be known what torch does with the code that runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", None)
_graph_task = getattr(torch._C, "_current_graph_task_id", None)
_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def under_export() -> bool:
    """Return whether `torch.export` traces the calling code.

    Not `torch.compiler.is_exporting`, which torch 2.11 also takes for true inside `torch.compile`; it is the
    answer where the flag is gone.
    """
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


def under_transform() -> bool:
    """Return whether the code runs inside a transform of `torch.func` or a level of forward derivatives.

    Torch itself asks so before it runs an autograd.Function.  Without the names the answer is no, and a
    kernel fails on the wrapped tensor.
    """
    if _transforms_active is not None and _transforms_active():
        return True
    return getattr(forward_ad, "_current_level", -1) >= 0


def current_backward_pass() -> int | None:
    """Return the identity of the backward pass that is running on this thread, or None.

    Without the name the answer is None: a forward that checkpointing repeats then counts as one of its own.
    """
    number = -1 if _graph_task is None else _graph_task()
    return None if number == -1 else number


def saves_through_hooks() -> bool:
    """Return whether hooks see the tensors that autograd saves, as those of checkpointing do.

    Without the name the answer is yes, which costs a walk over the stack and nothing else.
    """
    return _saving_hooks is None or _saving_hooks(False) is not None


def process_group(name: str) -> Any:
    """Return the process group of a name, which is how an op of a graph refers to one.

    Without the name, that is a group of all ranks if it is called so.

    Raises:
        RuntimeError: another group, and no way to find it.
    """
    from torch.distributed import distributed_c10d  # not in every build of torch

    resolve = getattr(distributed_c10d, "_resolve_process_group", None)
    if resolve is not None:
        return resolve(name)
    world = torch.distributed.group.WORLD
    if world is not None and world.group_name == name:
        return world
    raise RuntimeError(
        f"this version of torch cannot find the process group {name!r}; build the layer without process_group"
    )


def joins_uneven_inputs() -> bool:
    """Return whether ``DistributedDataParallel.join()`` is running; no where that cannot be told."""
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return bool(getattr(getattr(wrapper, "_join_config", None), "enable", False))
