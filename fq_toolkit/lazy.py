"""Public names that are loaded on first use, so that importing a package takes milliseconds (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    namespace: dict[str, Any], home: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    Args:
        namespace: the package's ``globals()``, with ``__all__``.
        home: public name -> module that defines it.

    Raises:
        AttributeError: from `__getattr__`, for a name that the package does not offer.
    """

    def load(name: str) -> Any:
        """Load a public name from the module that defines it."""
        if name not in home:
            offered = ", ".join(namespace["__all__"])
            raise AttributeError(
                f"module {namespace['__name__']!r} has no attribute {name!r}; it offers {offered}"
            )
        value = getattr(import_module(home[name]), name)
        namespace[name] = value  # the next access finds it without coming here
        return value

    def names() -> list[str]:
        """List the public names, loaded or not."""
        return sorted({*namespace, *namespace["__all__"]})

    return load, names
