"""Which forward runs when a model is called: somebody's assignment to ``model.forward`` shadows its class's.

Accelerate's mixed precision and offloading, and patches of single models, assign a forward to the model
itself.  One that leads to ours is as good as ours; with any other, a latent would be ignored in silence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

#: Attribute of a model whose forward was assigned before the injection: what our forward goes around.
INNER = "_latent_inner"
#: Attribute by which our forward answers a call that waits to hear that it ran.
WAITING = "_latent_waiting"
#: Where accelerate keeps the forward that its hooks or its autocast were put around.
_KEPT = ("_old_forward", "_original_forward")


def is_ours(function: Any, model: Any) -> bool:
    """Whether this is the injected class's own forward, perhaps bound, and bound again."""
    while isinstance(function, MethodType):
        function = function.__func__
    return function is own_forward(model)


def own_forward(model: Any) -> Any:
    """The forward that `injected_class` wrote, whatever was assigned since."""
    return type(model)._latent_forward


def is_replaced(model: Any) -> bool:
    """Whether another forward than ours is what a call finds first."""
    return "forward" in model.__dict__ or type(model).forward is not type(model)._latent_forward


def checked(model: Any, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``run``, which should lead to our forward.

    Raises:
        RuntimeError: a latent was given, and our forward did not run.
    """
    if not hasattr(type(model), "_latent_forward"):  # removed from inside what somebody has put around this
        return run(*args, **kwargs)
    model._refuse_lookalikes(kwargs)
    waiting: list[None] = []  # of this call alone, so that threads do not answer for each other
    model._latent_waiting = waiting
    outputs = run(*args, **kwargs)
    if model._latent_waiting is waiting:
        if kwargs.get("latent") is not None:
            raise RuntimeError(
                f"the latent was not read: {replacement(model)} has taken the place of this "
                f"{type(model).__name__}'s forward and does not lead to it; take it back, or apply it before "
                "inject_latent, which then goes around it"
            )
        model._latent_waiting = None
        model._note_training(None)
    return outputs


def guarded(model: Any, function: Any) -> Any:
    """What to assign as a model's forward, so that it is `checked` also where it is called by its name."""
    if isinstance(function, MethodType) and function.__self__ is model:
        inner = function.__func__

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return checked(self, functools.partial(inner, self), *args, **kwargs)

        functools.update_wrapper(forward, inner)
        forward.__signature__ = inspect.signature(own_forward(model))  # type: ignore[attr-defined]
        return MethodType(forward, model)
    outer = functools.partial(checked, model, function)  # a partial, as copies of a model copy what it holds
    functools.update_wrapper(outer, function)
    outer.__signature__ = inspect.signature(MethodType(own_forward(model), model))  # type: ignore[attr-defined]
    return outer


def replacement(model: Any) -> str:
    """Module and name of the function that is a model's forward instead of ours."""
    function = vars(model).get("forward", type(model).forward)
    while True:
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, functools.partial):
            function = function.args[1] if function.func is checked else function.func
        elif getattr(getattr(function, "__code__", None), "co_filename", None) == __file__:
            function = function.__wrapped__
        else:
            break
    code = getattr(function, "__code__", None)
    if code is None:
        kind = function if isinstance(function, type) else type(function)
        return f"{kind.__module__}.{kind.__qualname__}"
    # Not __module__ and __qualname__, which wrappers copy from what they wrap.
    return f"{function.__globals__.get('__name__')}.{getattr(code, 'co_qualname', code.co_name)}"


def suspicion(model: Any) -> str:
    """What to add to the reason why a model does not do: that its forward is somebody else's."""
    if "forward" not in vars(model):
        return ""
    return f" (its forward was replaced by {replacement(model)}; take that back if it drops keywords)"


@contextmanager
def heard(model: Any) -> Iterator[Callable[[], bool]]:
    """Hear, in a block that calls a model without an injection, whether what was assigned leads to ours.

    It does where an injection was removed from inside somebody's wrapper, which would go round in circles if
    ours went around it again.
    """
    waiting: list[None] = []
    vars(model)[WAITING] = waiting
    try:
        yield lambda: vars(model)[WAITING] is not waiting
    finally:
        del vars(model)[WAITING]


def go_around(model: Any, leads_here: bool) -> None:
    """Put our forward around one that was assigned to a model before its class became an injected one.

    Args:
        model: of an injected class.
        leads_here: whether that one calls our forward.
    """
    own = vars(model)
    if leads_here:
        model.forward = own["forward"]
        return
    own.pop(INNER, None)  # of an injection that was removed
    if "forward" not in own:
        return
    # Accelerate's hooks call what they find under this name, and stay outside.
    hooked = "_old_forward" in own
    inner = own.pop("_old_forward" if hooked else "forward")
    if getattr(inner, "__func__", None) is not type(model)._latent_base.forward:
        own[INNER] = inner
    if hooked:
        own["_old_forward"] = MethodType(own_forward(model), model)
        own["forward"] = guarded(model, own["forward"])


def come_off(model: Any) -> None:
    """Undo `go_around` and `guarded`, before the class of a model becomes the base's again.

    What somebody has put around our forward keeps calling it; it then passes on to what is inside.
    """
    own, base = vars(model), type(model)._latent_base
    own.pop(WAITING, None)
    inner = own.get(INNER)
    plain = MethodType(base.forward, model) if inner is None else inner
    for name in _KEPT:
        if name in own and is_ours(own[name], model):
            own[name] = plain
    if "forward" in own:
        own["forward"] = _unguarded(own["forward"])
    elif inner is not None:
        own["forward"] = own.pop(INNER)


def _unguarded(function: Any) -> Any:
    """What was given to `guarded`."""
    if isinstance(function, functools.partial) and function.func is checked:
        return function.args[1]
    if isinstance(function, MethodType):
        inner = function.__func__
        if getattr(getattr(inner, "__code__", None), "co_filename", None) == __file__:
            return MethodType(inner.__wrapped__, function.__self__)  # type: ignore[attr-defined]
    return function


def set_attribute(model: nn.Module, name: str, value: Any, plain: Callable[[str, Any], None]) -> None:
    """Set an attribute of an injected model; a forward is `guarded`, and our own needs none."""
    if name != "forward":
        plain(name, value)
    elif is_ours(value, model):
        vars(model).pop("forward", None)
    else:
        plain(name, guarded(model, value))
