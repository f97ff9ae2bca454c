"""Pickles of plain data: dicts, lists, numbers, text and numpy arrays of bytes, and nothing that runs.

A pickle is a program. It is read instruction by instruction first, and refused unless all it does is write
such data down: a structure that contains itself, or a part of itself twice, takes exponential time to look
at, and the unpickler allocates its memo up to the largest place that is named. Then an unpickler runs it that
knows only the names a numpy array needs, and has inert stand-ins for them.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.fqgan.data.file_bounds import regular_size
from fq_toolkit.training.errors import ConfigError

# A published batch has 31 MB, the training set of CIFAR-100 has 155 MB.
LARGEST = 512 * 2**20
# Instructions of the pickle language, by what they leave on its stack.
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_TEXT = {
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MADE = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
_CONTAINERS = {
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK"),
}
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_ELSE = {"PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "MEMOIZE"}
_ALLOWED = _INTEGERS | _TEXT | _MADE | _CONTAINERS | _PUT | _GET | _ELSE


class DType:
    """Stand-in for ``numpy.dtype`` while a pickle is read: remembers its name, does nothing."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and fields."""


class StoredArray:
    """Stand-in for ``numpy.ndarray`` while a pickle is read: remembers shape, type and bytes."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """Return a real array of bytes.

        Raises:
            ValueError: when the state is not that of a uint8 array.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without content")
        _, shape, dtype, by_column, data = self.state
        if not isinstance(dtype, DType) or dtype.name not in ("u1", b"u1", "|u1", b"|u1"):
            raise ValueError(f"an array of {getattr(dtype, 'name', dtype)!r}; expected bytes (u1)")
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array whose content is not bytes")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
        return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")


def _reconstruct(*_: Any) -> StoredArray:
    """Stand for numpy's function that makes the empty array which the pickle then fills."""
    return StoredArray()


class _Encoder:
    """Stand-in for ``codecs.encode``, with which Python 3 writes bytes into old pickles.

    Args:
        most: bytes that it returns in all: a real file encodes each of its texts once.
    """

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, text: Any, *_: Any) -> bytes:
        """Return the bytes of a text."""
        if not isinstance(text, str):
            raise pickle.UnpicklingError(f"bytes made of {type(text).__name__}")
        self.left -= len(text)
        if self.left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it holds")
        return text.encode("latin1")


class _Sealed:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that looks up no names but those of an array."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _Sealed(_reconstruct),
            ("numpy._core.multiarray", "_reconstruct"): _Sealed(_reconstruct),
            ("numpy", "ndarray"): StoredArray,
            ("numpy", "dtype"): _Sealed(DType),
            ("_codecs", "encode"): _Sealed(_Encoder(len(data))),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a known name.

        Raises:
            UnpicklingError: for any other name.
        """
        try:
            return self._known[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None


def _look_through(data: bytes) -> None:
    """Refuse a pickle that does more than write plain data down, before any of it runs.

    Raises:
        UnpicklingError: saying what it does.
    """
    kinds: dict[int, bool] = {}  # place in the pickle's memory -> may be referred to again
    plain, steps = False, 0
    argument: Any
    for code, argument, _ in pickletools.genops(io.BytesIO(data)):
        name, steps = code.name, steps + 1
        if name not in _ALLOWED:
            raise pickle.UnpicklingError(f"it has the instruction {name}, which no batch needs")
        if name in _PUT or name == "MEMOIZE":
            place = len(kinds) if name == "MEMOIZE" else int(argument)
            if not 0 <= place <= steps:  # the unpickler makes room up to this place
                raise pickle.UnpicklingError(f"it writes to place {place} of its memory at step {steps}")
            kinds[place] = plain
        elif name in _GET:
            if not kinds.get(int(argument), False):
                raise pickle.UnpicklingError("it has a list, tuple or dict in two places, or within itself")
            plain = True
        else:
            # Large numbers are no labels, and as keys they can be chosen to collide.
            if name in _INTEGERS and abs(int(argument)) >= 2**55:
                raise pickle.UnpicklingError("it has a number of more than 55 bits")
            plain = name in _TEXT or name in _MADE


def read_pickle(path: Path) -> dict[bytes, Any]:
    """Read a batch file without running anything in it.

    Returns:
        Its dictionary, keys as bytes; arrays are `StoredArray`.

    Raises:
        ConfigError: when it cannot be read, is no pickle of plain data, or asks for anything to be called.
    """
    size = regular_size(path)
    if size > LARGEST:
        raise ConfigError(f"{path} has {size:,} bytes; a CIFAR batch has fewer than {LARGEST:,}")
    try:
        data = path.read_bytes()
        _look_through(data)
        content = _PlainUnpickler(data).load()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise ConfigError(
            f"{path} is refused: {str(error) or type(error).__name__}. A CIFAR batch is a pickle of plain "
            "arrays and lists; nothing of this file was run"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected the dictionary of a CIFAR batch")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
