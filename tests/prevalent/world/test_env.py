"""The batched environment: its laws, and that each of its agents does what the simulator would."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import (
    BatchedNavEnv,
    DataError,
    FeatureStore,
    MiniWorld,
    NavItem,
    NavWorld,
    Scan,
    measure_paths,
)
from fq_toolkit.prevalent.world.angles import VIEW_HEADINGS, angle_features, view_angle_features, wrap
from tests.prevalent.world.worlds import line_world

WORLDS = {seed: MiniWorld(seed) for seed in range(3)}
DEVICES = [None, "cpu"]
SEEDS = st.integers(0, 10**6)


def numbers(values: Any) -> np.ndarray:
    return values.numpy() if isinstance(values, torch.Tensor) else values


def follow_teacher(env: BatchedNavEnv, items: list[NavItem], limit: int = 100) -> list[list[str]]:
    obs = env.reset(items)
    for _ in range(limit):
        if bool(obs.ended.all()):
            break
        obs, _, _ = env.step(obs.teacher)
    assert bool(obs.ended.all())
    return [[pose[0] for pose in found["trajectory"]] for found in env.trajectories()]


def random_items(world: NavWorld, generator: np.random.Generator, count: int) -> list[NavItem]:
    items = []
    for number in range(count):
        scan = world.scan(world.names[generator.integers(len(world.names))])
        start, *goals = (
            scan.viewpoints[i] for i in generator.integers(len(scan), size=1 + generator.integers(1, 4))
        )
        heading = float(generator.uniform(-7, 7))
        items.append(NavItem(str(number), scan.name, heading, (start,), tuple(goals), ""))
    return items


def random_actions(obs: Any, generator: np.random.Generator) -> np.ndarray:
    return np.array([generator.choice(np.nonzero(row)[0]) for row in numbers(obs.action_mask)])


@pytest.mark.parametrize("device", DEVICES)
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_following_the_teacher_reaches_the_nearest_goal_with_spl_one(device: str | None, seed: int) -> None:
    world = WORLDS[seed % 3]
    items = random_items(world, np.random.default_rng(seed), 6)
    paths = follow_teacher(BatchedNavEnv(world, device=device), items)
    for item, path in zip(items, paths, strict=True):
        lengths = [world.distance(item.scan, item.start, goal) for goal in item.goals]
        assert path[-1] in item.goals
        assert world.distance(item.scan, item.start, path[-1]) == pytest.approx(min(lengths))
    found = measure_paths(world, [i.scan for i in items], paths, paths, [i.goals for i in items])
    np.testing.assert_allclose(found.SPL, 1)
    np.testing.assert_allclose(found.NE, 0)


@pytest.mark.parametrize("device", DEVICES)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_stopped_agent_never_moves_and_earns_nothing(device: str | None, seed: int) -> None:
    generator = np.random.default_rng(seed)
    world = WORLDS[seed % 3]
    env = BatchedNavEnv(world, device=device)
    obs = env.reset(random_items(world, generator, 5))
    for _ in range(12):
        before = obs
        obs, reward, done = env.step(random_actions(obs, generator))
        stopped = numbers(before.ended)
        assert (numbers(done) >= stopped).all()
        for name in ("node", "view", "distance"):
            old, new = numbers(getattr(before, name)), numbers(getattr(obs, name))
            np.testing.assert_array_equal(new[stopped], old[stopped])
        assert (numbers(reward)[stopped] == 0).all()
        assert (numbers(obs.teacher)[numbers(done)] == -1).all()
    ends = [found["trajectory"][-1][0] for found in env.trajectories()]
    assert ends == obs.viewpoints


def test_impossible_actions_of_stopped_agents_are_ignored(mini: MiniWorld) -> None:
    env = BatchedNavEnv(mini)
    env.reset(mini.items(2))
    env.step([0, 0])
    obs, reward, done = env.step([99, -5])
    assert done.all()
    assert not reward.any()
    assert obs.viewpoints == [item.start for item in mini.items(2)]


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_each_agent_moves_as_if_it_were_alone(seed: int) -> None:
    """The batch, a batch of one, tensors, and the tables of the scan by hand: all the same."""
    generator = np.random.default_rng(seed)
    world = WORLDS[seed % 3]
    items = random_items(world, generator, 4)
    batch, tensors = BatchedNavEnv(world), BatchedNavEnv(world, device="cpu")
    single = [BatchedNavEnv(world) for _ in items]
    seen, other, alone = (
        batch.reset(items),
        tensors.reset(items),
        [e.reset([i]) for e, i in zip(single, items, strict=True)],
    )
    for _ in range(6):
        actions = random_actions(seen, generator)
        before = seen
        (seen, reward, done), (other, reward2, done2) = (
            batch.step(actions),
            tensors.step(torch.from_numpy(actions)),
        )
        for row, item in enumerate(items):
            alone[row], one_reward, one_done = single[row].step(actions[row : row + 1])
            assert alone[row].viewpoints[0] == seen.viewpoints[row] == other.viewpoints[row]
            assert (one_reward[0], one_done[0]) == (reward[row], done[row]) == (reward2[row], done2[row])
            assert alone[row].teacher[0] == seen.teacher[row] == other.teacher[row]
            assert alone[row].view[0] == seen.view[row] == other.view[row]
            np.testing.assert_allclose(other.candidate_headings[row].numpy(), seen.candidate_headings[row])
            scan = world.scan(item.scan)
            here = scan.locate(before.viewpoints[row])
            if actions[row] and not before.ended[row]:
                slot = actions[row] - 1
                assert scan.viewpoints[scan.neighbors[here, slot]] == seen.viewpoints[row]
                assert scan.views[here, slot] == seen.view[row]
            else:
                assert before.viewpoints[row] == seen.viewpoints[row]
                assert before.view[row] == seen.view[row]


@pytest.mark.parametrize("device", DEVICES)
def test_rewards_are_progress_and_success(device: str | None) -> None:
    world = line_world(1.0, 2.0, 2.0)  # a b c d at 0, 1, 3, 5
    env = BatchedNavEnv(world, device=device)
    items = [NavItem(str(i), "line", 0.0, (start,), ("d",), "") for i, start in enumerate("abcd")]
    obs = env.reset(items)
    assert numbers(obs.distance).tolist() == [5, 4, 2, 0]
    assert numbers(obs.teacher).tolist() == [1, 2, 2, 0]
    obs, reward, _ = env.step([1, 1, 2, 1])  # on, back, on, back
    assert numbers(reward).tolist() == [1, -1, 1, -1]
    assert obs.viewpoints == ["b", "a", "d", "c"]
    _, reward, done = env.step([0, 0, 0, 0])
    assert numbers(reward).tolist() == [-2, -2, 2, 2]
    assert numbers(done).all()


def test_success_is_strictly_inside_the_radius() -> None:
    item = NavItem("0", "line", 0.0, ("a",), ("b",), "")
    for length, reward in ((3.0, -2.0), (2.999, 2.0)):
        env = BatchedNavEnv(line_world(length))
        env.reset([item])
        assert env.step([0]).reward[0] == reward
    env = BatchedNavEnv(line_world(3.0), success_radius=3.1)
    env.reset([item])
    assert env.step([0]).reward[0] == 2.0


@pytest.mark.parametrize("device", DEVICES)
def test_secret_goals(device: str | None) -> None:
    """Items of a test split: no distance, no teacher, no reward, and no warning either."""
    env = BatchedNavEnv(line_world(1.0), device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        obs = env.reset(
            [NavItem("0", "line", 0.0, ("a",), (), ""), NavItem("1", "line", 0.0, ("a",), ("b",), "")]
        )
        assert math.isnan(obs.distance[0])
        assert numbers(obs.teacher).tolist() == [-1, 1]
        _, reward, _ = env.step([1, 1])
        assert numbers(reward).tolist() == [0, 1]
        assert numbers(env.step([0, 0]).reward).tolist() == [0, 2]


@given(seed=SEEDS, turns=st.integers(1, 11))
@settings(max_examples=15, deadline=None)
def test_turning_the_world_and_the_agents_changes_nothing_they_see(seed: int, turns: int) -> None:
    generator = np.random.default_rng(seed)
    world = MiniWorld(seed % 50, num_scans=1, feature_dim=8)
    scan = world.scan(world.names[0])
    angle = turns * math.pi / 6
    x, y, z = scan.positions.T
    cos, sin = math.cos(angle), math.sin(angle)
    positions = np.stack([x * cos + y * sin, y * cos - x * sin, z], axis=1)
    turned = NavWorld([Scan(scan.name, scan.viewpoints, positions, scan.adjacent)])
    store = world.features()
    views = np.arange(36)
    spun = np.empty((len(store), 36, 8), dtype=np.float32)
    spun[:, (views + turns) % 12 + views // 12 * 12] = store.panorama(np.arange(len(store)))
    rest = np.abs(wrap(scan.headings - np.round(scan.headings / (math.pi / 6)) * math.pi / 6))
    if (np.abs(rest - math.pi / 12)[scan.mask] < 1e-4).any():
        return  # a neighbour on the border of two views: rounding decides
    items = world.items(4, seed=seed)
    other = [item._replace(heading=item.heading + angle) for item in items]
    if any(
        abs(abs(wrap(i.heading - VIEW_HEADINGS[np.arange(12)])) - math.pi / 12).min() < 1e-6 for i in items
    ):
        return
    here, there = BatchedNavEnv(world, store), BatchedNavEnv(turned, FeatureStore(store.keys, spun))
    a, b = here.reset(items), there.reset(other)
    for _ in range(4):
        np.testing.assert_array_equal(a.teacher, b.teacher)
        np.testing.assert_allclose(a.candidate_features(), b.candidate_features(), atol=2e-5)
        order = (views + turns) % 12 + views // 12 * 12
        np.testing.assert_allclose(b.view_features()[:, order], a.view_features(), atol=1e-6)
        actions = random_actions(a, generator)
        a, reward, _ = here.step(actions)
        b, reward2, _ = there.step(actions)
        np.testing.assert_array_equal(reward, reward2)


@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
@pytest.mark.parametrize("kind", ["array", "synthetic"])
@pytest.mark.parametrize("device", DEVICES)
def test_features_are_those_of_the_store(mini: MiniWorld, layout: Any, kind: str, device: str | None) -> None:
    store = mini.features() if kind == "array" else FeatureStore.synthetic(mini, dim=16)
    env = BatchedNavEnv(mini, store, layout=layout, device=device)
    obs = env.reset(mini.items(5))
    obs, _, _ = env.step(obs.teacher)
    views, candidates = numbers(obs.view_features()), numbers(obs.candidate_features())
    assert views.shape == (5, 36, store.dim + 128)
    assert views.dtype == candidates.dtype == np.float32
    table = view_angle_features(layout=layout)
    for row, (item, viewpoint) in enumerate(zip(mini.items(5), obs.viewpoints, strict=True)):
        panorama = store.panorama(store.rows([(item.scan, viewpoint)]))[0]
        np.testing.assert_array_equal(
            views[row], np.concatenate([panorama, table[obs.view[row] % 12]], axis=1)
        )
        scan = mini.scan(item.scan)
        here = scan.locate(viewpoint)
        expected = np.zeros_like(candidates[row])
        for slot in np.nonzero(scan.mask[here])[0]:
            angles = angle_features(
                scan.headings[here, slot] - VIEW_HEADINGS[obs.view[row]],
                scan.elevations[here, slot],
                layout=layout,
            )
            expected[slot + 1] = np.concatenate([panorama[scan.views[here, slot]], angles])
        np.testing.assert_allclose(candidates[row], expected, atol=1e-6)


def test_scans_may_come_one_after_the_other(mini: MiniWorld) -> None:
    items = mini.items(20)
    by_scan = [[item for item in items if item.scan == name] for name in mini.names]
    assert all(by_scan)
    env = BatchedNavEnv(mini, mini.features())
    paths = {}
    for part in by_scan:
        found = follow_teacher(env, part)
        paths |= {item.instr_id: path for item, path in zip(part, found, strict=True)}
    together = follow_teacher(BatchedNavEnv(mini), items)
    assert [paths[item.instr_id] for item in items] == together


def test_mistakes_are_named(mini: MiniWorld) -> None:
    env = BatchedNavEnv(mini)
    items = mini.items(3)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step([0])
    with pytest.raises(RuntimeError, match="call reset"):
        env.trajectories()
    obs = env.reset(items)
    width = obs.action_mask.shape[1]
    real = int(obs.action_mask[1].sum())
    for action in (real, width, -1):
        with pytest.raises(
            ValueError, match=rf"action {action} on padding, item '1_0' \(number 1 of the batch\)"
        ):
            env.step([0, action, 0])
    assert not env.reset(items).ended.any()
    with pytest.raises(ValueError, match=r"actions have shape \(2,\); expected \(3,\)"):
        env.step([0, 0])
    with pytest.raises(TypeError, match="actions are float64; expected integers"):
        env.step([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="the environment has no features"):
        obs.view_features()
    with pytest.raises(TypeError, match="reset takes NavItems, got dict"):
        env.reset(mini.annotations(1))
    with pytest.raises(ValueError, match="at least one item"):
        env.reset([])
    with pytest.raises(DataError, match="item '0_0': the world has no scan 'x'"):
        env.reset([items[0]._replace(scan="x")])
    with pytest.raises(DataError, match=r"item '0_0': scan .* has no viewpoint 'x'"):
        env.reset([items[0]._replace(path=("x",))])
    with pytest.raises(ValueError, match="success_radius must be positive"):
        BatchedNavEnv(mini, success_radius=0)


@pytest.mark.parametrize("actions", [torch.tensor([0.0]), torch.tensor([True])])
def test_tensors_must_be_integers(actions: torch.Tensor, mini: MiniWorld) -> None:
    env = BatchedNavEnv(mini, device="cpu")
    env.reset(mini.items(1))
    with pytest.raises(TypeError, match="expected integers"):
        env.step(actions)
    with pytest.raises(ValueError, match="on padding"):
        env.step(torch.tensor([77]))


def test_an_unreachable_goal_is_named() -> None:
    apart = Scan("s", ["a", "b"], np.array([[0, 0, 0], [0, 1.0, 0]]), np.zeros((2, 2), dtype=bool))
    with pytest.raises(DataError, match="item '7_0': unreachable goal: no path in scan 's' from 'a' to 'b'"):
        BatchedNavEnv(NavWorld([apart])).reset([NavItem("7_0", "s", 0.0, ("a",), ("b",), "")])


def test_viewpoints_without_features_are_named(mini: MiniWorld) -> None:
    store = FeatureStore([(mini.names[0], "x")], np.zeros((1, 36, 4)))
    with pytest.raises(
        DataError, match=r"no features of viewpoint '.*' of scan 'mini3x\d' \(it has 1 viewpoints\)"
    ):
        BatchedNavEnv(mini, store).reset(mini.items(1))


@pytest.mark.gpu
def test_on_a_gpu(mini: MiniWorld) -> None:
    env = BatchedNavEnv(mini, mini.features(), device="cuda")
    obs = env.reset(mini.items(8))
    assert obs.candidate_features().is_cuda
    while not bool(obs.ended.all()):
        obs, reward, done = env.step(obs.teacher)
        assert reward.is_cuda
        assert done.is_cuda
    ends = [found["trajectory"][-1][0] for found in env.trajectories()]
    assert ends == [item.goals[0] for item in mini.items(8)]
