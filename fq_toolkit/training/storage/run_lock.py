"""One process at a time trains in a run folder: a lock that names its holder and does not outlive it.

The kernel keeps the lock where it can, so that one whose holder was killed is free at once. Some network file
systems keep such locks only within one machine; the file therefore also names process and machine, and the
holder touches it. A lock of another machine is taken over when it has not been touched for a while.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fq_toolkit.training.atomic import explain
from fq_toolkit.training.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"
BEAT = 5.0  # seconds between two touches
PATIENCE = 3 * BEAT  # untouched so long, a lock is stale

_held: set[tuple[int, int]] = set()  # by this process, which the kernel would let have its lock twice


class RunLock:
    """Context manager that holds the lock of a run folder.

    Args:
        folder: the run folder; it exists and can be written.

    Raises:
        RunError: on entering, when another process holds it; the message says which one, and on what machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._file: IO[str] | None = None
        self._stop = threading.Event()

    def __enter__(self) -> "RunLock":
        try:
            file = self._open()
        except OSError as error:
            raise RunError(f"cannot lock the run folder {self.folder}: {explain(error)}") from error
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}, file)
        file.flush()
        self._file = file
        _held.add(_identity(file))
        threading.Thread(target=self._touch, name="run lock", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._file is None:
            return
        _held.discard(_identity(self._file))
        with suppress(OSError):
            if self._is_current(self._file):
                self.path.unlink()  # while it is still held: nobody else can have come upon this file
        with suppress(OSError):
            self._file.close()

    def _open(self) -> IO[str]:
        """Return the locked file. One that was removed before it was locked protects nothing: again then."""
        while True:
            file = open(self.path, "a+", encoding="utf-8", errors="replace")
            try:
                self._claim(file)
                if self._is_current(file):
                    return file
                file.close()
            except BaseException:
                if _identity(file) not in _held:  # closing any handle gives up the lock of this process
                    file.close()
                raise

    def _claim(self, file: IO[str]) -> None:
        """Lock the file, or raise."""
        holder = _holder(file)
        if _identity(file) in _held:
            raise self._refused(holder)
        if fcntl is not None:
            try:
                # Not flock: children that this process forks would keep it after this one's death.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if holder.get("host") in (None, socket.gethostname()):
                    return
            except (BlockingIOError, PermissionError) as error:
                raise self._refused(holder) from error
            except OSError:  # no locks on this file system
                if not holder or _is_dead(holder):
                    return
        if holder and self._is_touched(file):
            raise self._refused(holder)

    def _is_touched(self, file: IO[str]) -> bool:
        """Watch whether a holder elsewhere is alive. Clocks of two machines differ, so no age is trusted."""
        before = os.fstat(file.fileno()).st_mtime_ns
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(BEAT / 10)
            if os.stat(self.path).st_mtime_ns != before:
                return True
        return False

    def _is_current(self, file: IO[str]) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == _identity(file)

    def _refused(self, holder: dict[str, Any]) -> RunError:
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
        return RunError(
            f"{self.folder} is being trained by {who}: wait until it ends or stop it. If there is no such "
            f"process any more, remove {self.path}."
        )

    def _touch(self) -> None:
        """Show that the holder lives; in a thread, which a long step does not hold up."""
        while not self._stop.wait(BEAT):
            with suppress(OSError, ValueError):
                os.utime(self.path)


def _identity(file: IO[str]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _holder(file: IO[str]) -> dict[str, Any]:
    """Return what a lock file says; empty when it says nothing one can read."""
    try:
        file.seek(0)
        record = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was on this machine and has no process any more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
