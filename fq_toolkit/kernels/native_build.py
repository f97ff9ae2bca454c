"""From C++ source to a library in the cache, on machines where any step of it may fail or never end."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from fq_toolkit.cache import cache_folder, temporary_cache

logger = logging.getLogger("fq_toolkit")

OPS = ("quantize_forward", "quantize_backward", "ema_commit", "decode")

_SOURCES = Path(__file__).with_name("cpu")
#: Seconds that a compiler may take to say its version or to compile one line, and to compile the kernels.
_BRIEF, _LONG = 20.0, 300.0


class BuildError(Exception):
    """The kernels could not be compiled or loaded; the message says why."""


def find_compiler() -> str:
    """Return the path of a C++ compiler.

    Raises:
        BuildError: when there is none.
    """
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")


def run_compiler(command: list[str], *, timeout: float) -> tuple[int, str]:
    """Run a compiler and return its status and what it said, in whatever encoding.

    Raises:
        BuildError: when it does not end in time; with all that it started it is ended then.
        OSError: when it cannot be started.
    """
    # Not pipes: a child of the compiler would hold them open after its end.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} did not end within {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                with suppress(OSError):
                    if hasattr(os, "killpg"):
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        process.kill()
                process.wait()
        said.seek(0)
        return status, said.read().decode("utf-8", "replace")


def load(feature: str) -> ctypes.CDLL:
    """Return the library for one element type: from the cache, if what is there can be used, else compiled.

    Args:
        feature: name of the type in the C++ source.

    Raises:
        BuildError: when it cannot be had.
    """
    compiler = find_compiler()
    _, version = run_compiler([compiler, "--version"], timeout=_BRIEF)
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.iterdir())]
    identity = "\0".join([*sources, version, _processor(), torch.__version__])
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    name = f"cpu_kernels-{feature.strip('_').lower()}-{digest}.so"
    problem = "no folder can be written"
    for folder in _folders():
        target = folder / name
        if _is_intact(target) and (loaded := _try_to_load(target)) is not None:
            return loaded
        # In a fraction of a second, what would be known after many seconds of compiling, at each start.
        if (problem := _problem_of(compiler, folder) or "") == "":
            logger.info("compiling the CPU kernels for %s with %s, once", feature, compiler)
            _compile(compiler, feature, target)
            loaded = _try_to_load(target)
            if loaded is None:
                raise BuildError(f"{target} was compiled and cannot be loaded")
            return loaded
        logger.info("CPU kernels are not kept in %s: %s", folder, problem)
    raise BuildError(problem)


def _folders() -> Iterator[Path]:
    """Yield folders for the library that can be written: the cache, and one among the temporary files."""
    first = cache_folder()
    for place in (lambda: first, temporary_cache):
        with suppress(OSError):
            folder = place()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                yield folder


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_intact(library: Path) -> bool:
    """Check the checksum and the content first: loading a damaged library would crash the process."""
    try:
        return _checksum_file(library).read_bytes() == _checksum(library).encode() and _is_whole(library)
    except OSError:
        return False


def _is_whole(library: Path) -> bool:
    """Return whether a file names all kernels and, if it is ELF, is as long as its header says.

    One that lacks a kernel must not be loaded either: its path would stand for it until the process ends.
    """
    content = library.read_bytes()
    if not all(f"fq_{op}".encode() in content for op in OPS):
        return False
    if content[:4] != b"\x7fELF":
        return os.name == "nt" or platform.system() == "Darwin"
    if len(content) < 64 or content[4] != 2:  # 64 bits
        return len(content) >= 52
    order = "<" if content[5] == 1 else ">"
    (start,) = struct.unpack_from(f"{order}Q", content, 40)
    size, count = struct.unpack_from(f"{order}HH", content, 58)
    return start + size * count <= len(content)


def _try_to_load(library: Path) -> ctypes.CDLL | None:
    """Return a loaded library that has all kernels, or None."""
    try:
        loaded = ctypes.CDLL(str(library))
        for op in OPS:
            function = loaded[f"fq_{op}"]
            function.argtypes = [ctypes.c_void_p]
            function.restype = ctypes.c_int
        _ = loaded.fq_parallel
    except (OSError, AttributeError) as error:
        logger.info("%s cannot be used: %s", library, error)
        return None
    return loaded


def _problem_of(compiler: str, folder: Path) -> str | None:
    """Compile one line into a folder and load it; return why that cannot be done, or None.

    Raises:
        BuildError: when the compiler is at fault, and another folder would not help.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            source, library = Path(place) / "probe.cpp", Path(place) / "probe.so"
            source.write_text('extern "C" int fq_probe() { return 0; }\n', encoding="utf-8")
            status, said = run_compiler(
                [compiler, "-shared", "-fPIC", str(source), "-o", str(library)], timeout=_BRIEF
            )
            if status != 0:
                raise BuildError(f"{compiler} could not compile the kernels: {_last_line(said)}")
            ctypes.CDLL(str(library))
    except OSError as error:
        return f"a library in {folder} cannot be written or executed ({error})"
    return None


def _last_line(said: str) -> list[str]:
    return said.strip().splitlines()[-1:]


def _compile(compiler: str, feature: str, target: Path) -> None:
    """Compile the source for one element type into ``target``, which appears complete or not at all."""
    # torch's own OpenMP runtime, so that both share one pool of threads.
    runtimes = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    attempts = [
        (["-march=native", "-fopenmp"], runtimes),
        (["-march=native", "-fopenmp"], ["-fopenmp"]),
        (["-march=native"], []),
        ([], []),
    ]
    message = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects, library = Path(folder) / "kernels.o", Path(folder) / target.name
        for compile_flags, link_flags in attempts:
            source = ["-c", str(_SOURCES / "kernels.cpp"), f"-DFEATURE={feature}"]
            commands = (
                [compiler, "-std=c++17", "-O3", "-fPIC", *compile_flags, *source, "-o", str(objects)],
                [compiler, "-shared", str(objects), "-o", str(library), *link_flags],
            )
            try:
                for command in commands:
                    status, said = run_compiler(command, timeout=_LONG)
                    if status != 0:
                        raise OSError(said)
                ctypes.CDLL(str(library))
            except OSError as error:
                message = str(error)
                continue
            os.replace(library, target)
            _checksum_file(target).write_text(_checksum(target))
            return
    raise BuildError(f"{compiler} could not compile the kernels: {_last_line(message)}")
