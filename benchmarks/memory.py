"""Peak extra memory of one call, beyond its inputs and the results that every contender must return.

``"resident"``, of contenders from different libraries.  CPU: a fresh process builds the inputs, calls once
on few rows (which loads code and starts threads), returns free heap to the system, resets the kernel's
high-water mark of resident memory, and calls once on the whole problem. This counts every allocator, also
those inside other libraries, to within the pages that they keep back.  CUDA: the high-water mark of torch's
allocator.

``"tensors"``, of contenders that differ by less than such pages and keep all they have in tensors.  CPU: the
bytes that torch's allocator was asked for in a task's first call.  CUDA: as above, of a first call.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import re
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import find
from benchmarks.contender import Task


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found.group(1)) * 1024


def can_measure_cpu() -> bool:
    """Return whether this system has the high-water mark and lets a process reset it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status("VmHWM")
    except OSError:
        return False
    return sys.platform == "linux"


def resident_peak(task: Task) -> int:
    """Return the bytes by which one call raises the peak of this process's resident memory, with results."""
    state = task.setup()
    gc.collect()
    # Free pages that the heap holds back would take the call's allocations and hide them from the mark.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = task.run(state)
    peak = _status("VmHWM") - before
    del result
    return peak


def allocated_peak(task: Task) -> int:
    """Return the bytes of CPU tensors by which one call raises what is alive at its peak, results included.

    What was alive before the call neither counts nor makes room when it is freed, which the profiler does not
    see: a first call, which has no gradients of an earlier one to drop, is what can be compared.
    """
    state = task.setup()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = task.run(state)
    del result
    alive = peak = 0
    for change in _allocations(profiler):
        alive += change
        peak = max(peak, alive)
    return peak


def _allocations(profiler: profile) -> list[int]:
    """Return the bytes that were allocated (above 0) and freed (below), in order.

    From the trace, since that is what the profiler documents: its tables hold sums of operations, no peaks.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]"]
    return [int(event["args"]["Bytes"]) for event in sorted(found, key=lambda event: event["ts"])]


def cuda_peak(task: Task) -> int:
    """Return the bytes by which one call raises the CUDA allocator's peak, results included."""
    state = task.setup()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = task.run(state)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def _probe(
    connection: Connection, case_name: str, shape_name: str, contender_name: str, threads: int
) -> None:
    """Send, from the fresh process, the peak in bytes or the reason why there is none."""
    try:
        torch.set_num_threads(threads)
        case, shape, contender = find(case_name, shape_name, contender_name)
        problem = case.problem(shape)
        warm = contender.build(problem.small())
        warm.run(warm.setup())
        del warm
        problem.prepare()
        connection.send(max(0, resident_peak(contender.build(problem)) - case.result_bytes(problem)))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def peak_in_fresh_process(
    case_name: str, shape_name: str, contender_name: str, threads: int, timeout_s: float = 180.0
) -> int | str:
    """Return the peak extra bytes on the CPU, or the reason why it could not be measured."""
    if not can_measure_cpu():
        return "this system has no resettable high-water mark of memory"
    # A child of this process would inherit its heap; the fork server has only loaded torch.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_probe, args=(theirs, case_name, shape_name, contender_name, threads))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(timeout_s) else f"no answer within {timeout_s:.0f} s"
    except EOFError:
        return "the process ended without an answer (out of memory?)"
    finally:
        if process.is_alive() and not ours.closed:
            process.join(5)
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()
