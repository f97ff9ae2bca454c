"""Whether a module runs a child that is added to it: tried out, since its forward may do anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.insertion.features import features_in
from fq_toolkit.layers.insertion.handle import CHILD
from fq_toolkit.layers.insertion.probe import arguments, untouched


def runs_its_children(module: nn.Module) -> bool:
    """Return whether a child appended to this module is run by the module itself."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


class _StandIn(nn.Module):
    """Stands where a quantizer would, and notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.last: Any = None
        self.got_more = False

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        self.last = x
        self.got_more |= bool(args or kwargs)
        return x


class _Trial:
    """What chosen modules did in one forward.

    Attributes:
        returned: their features, call by call.
        stood_in: for each call whether the stand-in ran, once and on just what the module returned; None
            where it ran in another way.
        child_runs: how often each of their own children ran.
    """

    def __init__(self, model: nn.Module, chosen: Mapping[str, nn.Module], example_inputs: Any) -> None:
        self.returned: dict[str, list[Tensor | None]] = {name: [] for name in chosen}
        self.stood_in: dict[str, list[bool | None]] = {name: [] for name in chosen}
        children = {child for module in chosen.values() for child in module.children()}
        self._runs: dict[nn.Module, int] = {child: 0 for child in children if not isinstance(child, _StandIn)}
        hooks = [child.register_forward_hook(self._count) for child in self._runs]
        hooks += [module.register_forward_hook(self._note(name)) for name, module in chosen.items()]
        args, kwargs = arguments(example_inputs)
        try:
            with untouched(model):
                model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        self.child_runs = {
            name: [self._runs[child] for child in module.children() if child in self._runs]
            for name, module in chosen.items()
        }

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        self._runs[module] += 1

    def _note(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            features = features_in(output)
            # A copy, as an activation in place may follow.
            self.returned[name].append(None if features is None else features.clone())
            stand_in = module._modules.get(CHILD)
            if isinstance(stand_in, _StandIn):
                runs, stand_in.runs = stand_in.runs, 0
                proper = runs == 1 and features is stand_in.last and not stand_in.got_more
                self.stood_in[name].append(False if runs == 0 else True if proper else None)

        return note


def needs_hook(model: nn.Module, chosen: Mapping[str, nn.Module], example_inputs: Any) -> dict[str, bool]:
    """Find out whether each module's quantizer must be run by a hook: not where it runs all its children.

    Tried in two forwards, without and with a stand-in as the last child.

    Raises:
        ValueError: a module that a new child changes, or that runs it in another way than once on just what
            the module returns.
    """
    without = _Trial(model, chosen, example_inputs)
    try:
        for module in chosen.values():
            module.add_module(CHILD, _StandIn())
        tried = _Trial(model, chosen, example_inputs)
    except Exception as error:
        suspects = [name for name, module in chosen.items() if not runs_its_children(module)]
        raise ValueError(
            f"the model fails with a new child in {', '.join(map(repr, suspects or chosen))}: one of them "
            f"runs its children itself; name the module inside it whose output is meant ({error})"
        ) from error
    finally:
        for module in chosen.values():
            module._modules.pop(CHILD, None)
    for name, module in chosen.items():
        joined = tried.stood_in[name]
        before, after = without.returned[name], tried.returned[name]
        if (
            None in joined
            or len(set(joined)) > 1
            or without.child_runs[name] != tried.child_runs[name]
            or (any(joined) and not all(map(_alike, before, after)))
        ):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) runs its children itself, and a quantizer among them "
                "would change what it does, run on something else than what it returns, or not once; name "
                "the module inside it whose output is meant"
            )
    return {name: not any(joined) for name, joined in tried.stood_in.items()}


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two runs returned the same features, up to kernels whose rounding varies."""
    if a is None or b is None or a.shape != b.shape:
        return a is b
    return torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3, equal_nan=True)
