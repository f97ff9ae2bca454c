"""Errors that a user of the trainers can act on: the command line prints them without a traceback."""

import importlib
from types import ModuleType


class ConfigError(ValueError):
    """An option or a configuration file is wrong; the message names it and what was expected."""


class RunError(RuntimeError):
    """A run cannot start or go on; the message says why, what is safe and what to do."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged or from another model."""


class DivergedError(RunError):
    """A loss or a weight became NaN or infinite."""


class MissingExtraError(ImportError):
    """A package of an optional extra is missing or cannot be imported."""


# What state of another shape than the code expects raises, wherever it is taken apart.
MISFITS = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
    RecursionError,
)


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
