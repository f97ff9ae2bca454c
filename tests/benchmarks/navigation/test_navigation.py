"""The navigation cases: gates catch mistakes and let the package pass, a quick run prints, targets count."""

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.cases import BY_NAME
from benchmarks.navigation import contenders as navigation
from benchmarks.navigation import data as navigation_data
from benchmarks.navigation import gates as navigation_gates
from benchmarks.navigation.problem import ENV_QUICK
from benchmarks.navigation.targets import navigation_targets
from benchmarks.results import MEASURED, Row
from fq_toolkit.prevalent import BatchedNavEnv, NavWorld, collect_triplets, measure_paths


@pytest.fixture(autouse=True)
def _miniworld_only(monkeypatch):
    """The real graphs are checked by every real run; here the small world is enough."""
    monkeypatch.setattr(navigation_gates, "_both", lambda: iter([navigation_data.graphs(ENV_QUICK[0])]))


def test_the_package_passes_all_gates():
    for gate in navigation_gates.GATES.values():
        assert gate() == []


class _WrongReward(BatchedNavEnv):
    def step(self, actions):
        step = super().step(actions)
        return step._replace(reward=0 * step.reward)


class _RestlessEnv(BatchedNavEnv):
    """Stopped agents walk on, the bug of a known fork."""

    stopped: np.ndarray | bool = False

    def step(self, actions):
        self.stopped = self.stopped | self._ended
        self._ended = np.zeros_like(self._ended)
        return super().step(np.where(self.stopped, 1, actions))


@pytest.mark.parametrize("factory", [_WrongReward, _RestlessEnv])
def test_a_wrong_environment_turns_red(factory):
    assert navigation_gates.check_env(factory)


def test_a_wrong_length_turns_the_world_red():
    def factory(folder, scans):
        world = NavWorld.from_connectivity(folder, scans)
        world.scan(scans[0]).lengths[0, 0] += 1e-6
        return world

    assert any("length" in finding for finding in navigation_gates.check_world(factory))


def test_a_missing_edge_turns_the_world_red():
    def factory(folder, scans):
        world = NavWorld.from_connectivity(folder, scans)
        world.scan(scans[0]).mask[0, 0] = False
        return world

    assert any("edges differ" in finding for finding in navigation_gates.check_world(factory))


def test_another_label_turns_the_triplets_red():
    def collect(world, items, encode):
        return collect_triplets(world, items, encode, kind="candidate")

    assert navigation_gates.check_triplets(collect)


def test_a_loose_metric_turns_red():
    def measure(*arguments):
        found = measure_paths(*arguments)
        return found._replace(nDTW=found.nDTW * (1 + 1e-8))

    assert navigation_gates.check_metrics(measure)


def test_a_quick_run_prints_and_writes_nothing(capsys, tmp_path):
    words = ["run", "--quick", "--rounds", "1", "--threads", "1", "--results", str(tmp_path)]
    cases = [word for case in ("env_steps", "triplets", "nav_metrics") for word in ("--case", case)]
    assert main([*words, *cases]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (navigation.ENV, navigation.TURNING, navigation.METRICS))
    assert "MiniWorld of 2 scans" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["env_steps", "world_loading", "triplets", "nav_metrics"])
def test_every_case_has_a_peer_and_a_gate(case):
    contenders = BY_NAME[case].contenders
    assert {"ours", "peer"} == {contender.kind for contender in contenders}
    assert set(BY_NAME[case].gates) <= set(navigation_gates.GATES)


def _row(case, shape, n, contender, milliseconds):
    return Row(
        case, shape, n, 0, 0, "graphs", "float32", contender, "ours", "cpu", "m", 1, "3", "2", "", "c",
        False, "d", MEASURED, "green", median_ms=milliseconds, note="Matterport graphs",
    )  # fmt: skip


def test_targets_count_steps_per_second_and_times():
    rows = [
        _row("env_steps", "B 64", 512, navigation.ENV, 1.0),
        _row("env_steps", "B 64", 512, navigation.ENV_LOOP, 2.0),
        _row("triplets", "50 paths", 300, navigation.TRIPLETS, 30.0),
    ]
    steps, triplets = navigation_targets(rows)
    assert (steps.found, steps.word) == ("5.12e+05 steps/s", "met")
    assert "2.56e+05 steps/s" in steps.detail
    assert "Matterport" in steps.detail
    assert (triplets.found, triplets.word) == ("100 us each", "missed")
    assert navigation_targets([]) == []
