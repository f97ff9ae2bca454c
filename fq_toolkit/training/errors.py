"""Errors that a user of the trainers can act on: the command line prints them without a traceback."""


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
