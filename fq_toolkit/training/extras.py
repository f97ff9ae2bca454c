"""Optional packages: import them where they are used, and say how to get them when they are missing."""

import importlib
from types import ModuleType

from fq_toolkit.training.errors import MissingExtraError


def require(module: str, *, purpose: str, extra: str = "train") -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name, for example ``"matplotlib.pyplot"``.
        purpose: what needs it, as the subject of a sentence: ``"drawing curves"``.
        extra: the extra of fq-toolkit that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: when it is not installed, or is installed and fails to import (whatever it raised:
            a broken compiled package raises anything from ImportError to RuntimeError).
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        package = module.partition(".")[0]
        reason = (
            "is not installed" if isinstance(error, ModuleNotFoundError) else f"fails to import ({error})"
        )
        raise MissingExtraError(
            f"{purpose} needs {package}, which {reason}. It belongs to the extra {extra!r}: "
            f"pip install 'fq-toolkit[{extra}]'"
        ) from error
