"""Interleaving: everyone once a round, in rotating order."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.contender import Task
from benchmarks.timing import Timing, calls_per_sample, cpu_sample, interleave, paired_ratio, rotation


@given(st.integers(1, 7), st.integers(0, 40))
def test_a_round_holds_everyone_once(count, index):
    names = [str(number) for number in range(count)]
    assert sorted(rotation(names, index)) == names


@given(st.integers(2, 6))
def test_everyone_takes_every_place_equally_often(count):
    names = [str(number) for number in range(count)]
    for place in range(count):
        at_place = Counter(rotation(names, index)[place] for index in range(2 * count))
        assert set(at_place.values()) == {2}


def test_predecessors_vary():
    names = ["a", "b", "c", "d"]
    before_b = {order[order.index("b") - 1] for order in (rotation(names, index) for index in range(8))}
    assert len(before_b) > 1


def test_rounds_are_interleaved():
    log = []

    def task(name):
        return Task(lambda _: log.append(name))

    def clock(task, calls):
        task.run(None)
        return 5.0

    timings = interleave({name: task(name) for name in "abc"}, rounds=6, sampler=clock)
    rounds = log[6:]  # two calls each come first, to warm up and to estimate
    assert len(rounds) == 18
    assert all(set(rounds[start : start + 3]) == set("abc") for start in range(0, 18, 3))
    assert rounds[0:3] != rounds[3:6]
    assert all(len(timing.samples) == 6 for timing in timings.values())


def test_a_slow_one_takes_part_in_some_rounds():
    log = []
    tasks = {name: Task(lambda _, name=name: log.append(name)) for name in "ab"}
    tasks["slow"] = Task(lambda _: log.append("slow"), every=3)

    def clock(task, calls):
        task.run(None)
        return 1000.0

    timings = interleave(tasks, seconds=14, sampler=clock)  # a round takes 2.3 s
    assert {name: len(timing.samples) for name, timing in timings.items()} == {"a": 5, "b": 5, "slow": 2}
    rounds = "".join(name[0] for name in log[-12:])
    assert sorted(rounds[:3]) == ["a", "b", "s"]
    assert sorted(rounds[3:5]) == sorted(rounds[5:7]) == ["a", "b"]


def test_paired_ratios_bear_a_drift_of_the_machine():
    drift = [1.0, 7.0, 2.0, 5.0, 3.0]
    below = Timing(tuple(drift), "")
    above = Timing(tuple(1.25 * value for value in drift[:4]) + (300.0,), "")
    assert paired_ratio(above, below) == 1.25
    assert paired_ratio(Timing((1.0,), ""), below) is None


def test_the_time_allowed_sets_the_number_of_rounds():
    def clock(task, calls):
        return 1000.0

    few = interleave({"slow": Task(lambda _: None)}, seconds=1, sampler=clock)
    many = interleave({"slow": Task(lambda _: None)}, seconds=10, sampler=clock)
    assert (len(few["slow"].samples), len(many["slow"].samples)) == (3, 9)


def test_setup_is_not_timed():
    import time

    task = Task(lambda _: None, setup=lambda: time.sleep(0.02))
    assert cpu_sample(task, 1) < 10


@pytest.mark.parametrize(("first", "calls"), [(0.0, 200), (0.1, 20), (1.0, 2), (500.0, 1)])
def test_short_calls_are_repeated_within_a_sample(first, calls):
    assert calls_per_sample(first) == calls


def test_median_and_quartiles():
    timing = Timing((3.0, 1.0, 2.0, 5.0, 4.0), "perf_counter")
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))


@pytest.mark.gpu
def test_cuda_events_measure_something():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.randn(512, 512, device="cuda")
    assert interleave({"mm": Task(lambda _: x @ x)}, device="cuda", rounds=3)["mm"].median > 0
