"""Interleaved timing: the contenders once a round, in rotating order, on one clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.contender import Task

_SHORTEST_SAMPLE_MS = 2.0
_PAUSE_S = 0.003


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over the rounds."""

    samples: tuple[float, ...]
    clock: str

    @property
    def median(self) -> float:
        """Middle sample."""
        return float(np.median(self.samples))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        low, high = np.percentile(self.samples, [25, 75])
        return float(low), float(high)


def paired_ratio(above: Timing, below: Timing) -> float | None:
    """Return the median over the rounds of one's time over the other's; None if their rounds differ.

    A disturbance that outlasts a round changes both times of a pair, and hardly their ratio.
    """
    if len(above.samples) != len(below.samples):
        return None
    return float(np.median(np.divide(above.samples, below.samples)))


def rotation(names: Sequence[str], round_index: int) -> list[str]:
    """Return the order of one round: all start equally often, and predecessors vary by flipping it."""
    start = round_index % len(names)
    order = [*names[start:], *names[:start]]
    return order if (round_index // len(names)) % 2 == 0 else order[::-1]


Sampler = Callable[[Task, int], float]


def cpu_sample(task: Task, calls: int) -> float:
    """Return milliseconds per call by the performance counter, over ``calls`` calls in a row."""
    states = [task.setup() for _ in range(calls)]  # before the clock starts
    begin = time.perf_counter()
    for state in states:
        task.run(state)
    return (time.perf_counter() - begin) * 1e3 / calls


def cuda_sample(task: Task, calls: int) -> float:
    """Return milliseconds per call by CUDA events; the calls are queued back to back."""
    states = [task.setup() for _ in range(calls)]
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for state in states:
        task.run(state)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def as_graph(task: Task) -> Task | None:
    """Return the task as the replay of a CUDA graph, or None when it cannot be captured."""
    try:
        # A capture needs warm kernels and a stream of its own; three calls, as torch's own helper makes.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                task.run(task.setup())
        torch.cuda.current_stream().wait_stream(stream)
        state = task.setup()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            task.run(state)
    except Exception:  # any host synchronisation ends a capture, with errors of many types
        torch.cuda.synchronize()
        return None

    def replay(_: Any) -> None:
        graph.replay()

    return Task(replay)


def calls_per_sample(first_ms: float) -> int:
    """Return how many calls make a sample, far above the clock's resolution."""
    return max(1, min(200, math.ceil(_SHORTEST_SAMPLE_MS / max(first_ms, 1e-3))))


def interleave(
    tasks: Mapping[str, Task],
    *,
    device: str = "cpu",
    seconds: float = 10.0,
    rounds: int | None = None,
    min_rounds: int = 3,
    max_rounds: int = 31,
    sampler: Sampler | None = None,
) -> dict[str, Timing]:
    """Time all tasks in the same rounds.

    Args:
        tasks: by name; each was built and can be called.
        device: "cpu" or "cuda".
        seconds: rounds are added until about this much time is used.
        rounds: exact number of rounds instead.
        min_rounds: at least so many, however slow a task is.
        max_rounds: at most so many.
        sampler: replaces the clock, for tests.

    Returns:
        One `Timing` per name.
    """
    take = sampler or (cuda_sample if device == "cuda" else cpu_sample)
    calls: dict[str, int] = {}
    estimate: dict[str, float] = {}
    for name, task in tasks.items():
        first = take(task, 1)
        # The first call also loads code and fills caches; of a short call a second one tells the real size.
        estimate[name] = take(task, 1) if first < 50 else first
        calls[name] = calls_per_sample(estimate[name])
    # A contender that takes part in every fifth round costs a fifth of its time per round.
    costs = (estimate[name] * calls[name] / task.every for name, task in tasks.items())
    round_s = sum(costs) / 1e3 + _PAUSE_S * len(tasks)
    if rounds is None:
        rounds = max(min_rounds, min(max_rounds, int(seconds / round_s)))
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    for index in range(rounds):
        for name in rotation(list(tasks), index):
            if index % tasks[name].every:
                continue
            time.sleep(_PAUSE_S)  # lets the worker threads of the previous contender's runtime fall asleep
            samples[name].append(take(tasks[name], calls[name]) * tasks[name].scale)
    clock = "cuda events" if device == "cuda" else "perf_counter"
    return {name: Timing(tuple(values), clock) for name, values in samples.items()}
