"""The forward that runs when a model is called: an assignment to ``model.forward`` shadows that of its class.

Accelerate's mixed precision and offloading, and patches of single models, assign a forward to the model
itself. One that leads to ours is as good as ours; with any other, a latent would be ignored in silence.
Whether it leads there is found out by a token: a call puts it into the model, and our forward takes it
away.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

from fq_toolkit.layers.latent.missing_latents import note_training, refuse_lookalikes
from fq_toolkit.layers.latent.private import HOOKED_FORWARD, KEPT_FORWARDS

#: Attribute of a model whose forward was assigned before the injection: that forward, which ours goes around.
INNER = "_latent_inner"
#: Attribute with the token of a call, which our forward replaces by None to tell the call that it ran.
WAITING = "_latent_waiting"


def is_ours(function: Any, model: Any) -> bool:
    """Return whether this is the injected class's own forward, perhaps bound, and bound again."""
    while isinstance(function, MethodType):
        function = function.__func__
    return function is own_forward(model)


def own_forward(model: Any) -> Any:
    """Return the forward that `injected_class` wrote, whatever was assigned since."""
    return type(model)._latent_forward


def is_replaced(model: Any) -> bool:
    """Return whether a call finds another forward than ours first."""
    return "forward" in model.__dict__ or type(model).forward is not type(model)._latent_forward


def checked(model: Any, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``run``, which should lead to our forward.

    Args:
        model: of an injected class.
        run: what somebody has put in place of its forward.
        *args: of the call.
        **kwargs: of the call.

    Returns:
        What ``run`` returns.

    Raises:
        RuntimeError: a latent was given, and our forward did not run.
    """
    if not hasattr(type(model), "_latent_forward"):  # removed from inside what somebody has put around this
        return run(*args, **kwargs)
    refuse_lookalikes(model, kwargs)
    # A new object for each call, so that calls in several threads do not answer for each other.
    waiting: list[None] = []
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
        note_training(model, None)
    return outputs


def guarded(model: Any, function: Any) -> Any:
    """Return what to assign as a model's forward, so that ``model.forward(...)`` is `checked` too."""
    # A method stays a method, as pickle and copies bind it to the model that they make.
    if isinstance(function, MethodType) and function.__self__ is model:
        inner = function.__func__

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return checked(self, functools.partial(inner, self), *args, **kwargs)

        functools.update_wrapper(forward, inner)
        forward.__signature__ = inspect.signature(own_forward(model))  # type: ignore[attr-defined]
        return MethodType(forward, model)
    # A partial and no closure: deepcopy of the model then copies what it holds, the model among it.
    outer = functools.partial(checked, model, function)
    functools.update_wrapper(outer, function)
    outer.__signature__ = inspect.signature(MethodType(own_forward(model), model))  # type: ignore[attr-defined]
    return outer


def replacement(model: Any) -> str:
    """Return module and name of the function that is a model's forward instead of ours, for an error."""
    function = vars(model).get("forward", type(model).forward)
    while True:
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, functools.partial):
            function = function.args[1] if function.func is checked else function.func
        elif _is_written_here(function):
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
    """Return what to add to the reason why a model was refused: that its forward is somebody else's."""
    if "forward" not in vars(model):
        return ""
    return f" (its forward was replaced by {replacement(model)}; take that back if it drops keywords)"


@contextmanager
def watched(model: Any) -> Iterator[Callable[[], bool]]:
    """Find out, in a block that calls a model without an injection, whether its forward leads to ours.

    It does if an injection was removed from inside somebody's wrapper. Ours around that wrapper would then
    recurse without end.

    Yields:
        A function that returns whether our forward has run.
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
    attributes = vars(model)
    if leads_here:
        model.forward = attributes["forward"]
        return
    attributes.pop(INNER, None)  # left by an injection that was removed
    if "forward" not in attributes:
        return
    # A hook of accelerate calls what it finds under this name: ours goes there, and the hook stays outside,
    # where it moves the weights before anything of the model runs.
    hooked = HOOKED_FORWARD in attributes
    inner = attributes.pop(HOOKED_FORWARD if hooked else "forward")
    # The class's own forward needs no keeping: ours looks it up, and so sees what is assigned to the class.
    if getattr(inner, "__func__", None) is not type(model)._latent_base.forward:
        attributes[INNER] = inner
    if hooked:
        attributes[HOOKED_FORWARD] = MethodType(own_forward(model), model)
        attributes["forward"] = guarded(model, attributes["forward"])


def come_off(model: Any) -> None:
    """Undo `go_around` and `guarded`, before the class of a model becomes the base's again.

    What somebody has put around our forward keeps calling it; it then passes on to what is inside.
    """
    attributes, base = vars(model), type(model)._latent_base
    attributes.pop(WAITING, None)  # else it would be an attribute that the base model did not have
    inner = attributes.get(INNER)
    plain = MethodType(base.forward, model) if inner is None else inner
    for name in KEPT_FORWARDS:
        if name in attributes and is_ours(attributes[name], model):
            attributes[name] = plain
    if "forward" in attributes:
        attributes["forward"] = _unguarded(attributes["forward"])
    elif inner is not None:
        attributes["forward"] = attributes.pop(INNER)


def _unguarded(function: Any) -> Any:
    """Return what was given to `guarded`, or the function itself if it is none of ours."""
    if isinstance(function, functools.partial) and function.func is checked:
        return function.args[1]
    if isinstance(function, MethodType):
        inner: Any = function.__func__
        if _is_written_here(inner):
            return MethodType(inner.__wrapped__, function.__self__)
    return function


def _is_written_here(function: Any) -> bool:
    """Return whether a function is one that `guarded` made: its names are copied, its code is ours."""
    return getattr(getattr(function, "__code__", None), "co_filename", None) == __file__


def set_forward(model: nn.Module, value: Any, assign: Callable[[str, Any], None]) -> None:
    """Assign a forward to an injected model, `guarded`.

    Args:
        model: of an injected class.
        value: the forward. The class's own is not assigned: that of the class is found without.
        assign: how the class of the model sets an attribute.
    """
    if is_ours(value, model):
        vars(model).pop("forward", None)
    else:
        assign("forward", guarded(model, value))
