"""Beam search: with room for everything it is exhaustive, with room for one it is greedy."""

import itertools

import pytest
import torch

from fq_toolkit.prevalent import BatchedNavEnv, MiniWorld, measure_paths
from fq_toolkit.prevalent.model.beam import beam_search
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.rollout import rollout
from fq_toolkit.prevalent.world.items import NavItem
from tests.prevalent.model.test_follower import make_agent


@pytest.fixture(scope="module")
def world() -> MiniWorld:
    return MiniWorld(6, num_scans=1, rooms=(1, 3), feature_dim=8)


@pytest.fixture(scope="module")
def env(world: MiniWorld) -> BatchedNavEnv:
    return BatchedNavEnv(world, world.features(), device="cpu")


@pytest.fixture(scope="module")
def items(world: MiniWorld) -> list[NavItem]:
    name = world.names[0]
    places = world.scan(name).viewpoints
    return [
        NavItem(str(i), name, 0.7 * i, (places[i],), (places[-1],), f"to the {word} then stop")
        for i, word in enumerate(("sofa", "lamp"))
    ]


def score(agent: FollowerAgent, env: BatchedNavEnv, item: NavItem, actions: tuple[int, ...]) -> float | None:
    """Return the log-probability of a sequence of actions, None where it is impossible."""
    observation = env.reset([item])
    reading = agent.read([item])
    state, total = reading.state, 0.0
    for action in actions:
        if action >= int(observation.action_mask[0].sum()):
            return None
        log_probs, _, state = agent(reading, state, observation)
        total += float(log_probs[0, action].double())
        chosen = torch.tensor([action])
        state = agent.act(state, chosen)
        observation = env.step(chosen).observation
    return total


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_with_room_for_all_is_exhaustive(
    world: MiniWorld, env: BatchedNavEnv, items: list[NavItem], seed: int
) -> None:
    agent, steps = make_agent(world, seed=seed), 3
    most = int(world.scan(world.names[0]).mask.sum(1).max()) + 1
    found = beam_search(agent, env, items, width=most**steps, max_steps=steps)
    for item, best in zip(items, found, strict=True):
        every = {}
        for length in range(1, steps + 1):
            for moves in itertools.product(range(1, most), repeat=length - 1):
                for last in range(most if length == steps else 1):
                    value = score(agent, env, item, (*moves, last))
                    if value is not None:
                        every[(*moves, last)] = value
        chosen = max(every, key=every.__getitem__)
        assert best.actions == chosen
        assert best.log_prob == pytest.approx(every[chosen], abs=1e-5)
        assert best.stopped == (chosen[-1] == 0)


@torch.no_grad()
def test_width_one_is_greedy_and_wider_beams_find_no_less(
    world: MiniWorld, env: BatchedNavEnv, items: list[NavItem]
) -> None:
    agent = make_agent(world, seed=2)
    greedy = rollout(agent, env, items, "argmax", max_steps=4)
    narrow = beam_search(agent, env, items, width=1, max_steps=4)
    assert [path.record() for path in narrow] == greedy.trajectories
    wide = beam_search(agent, env, items, width=100, max_steps=4)
    assert all(w.log_prob >= n.log_prob - 1e-6 for w, n in zip(wide, narrow, strict=True))
    paths = [[pose[0] for pose in path.poses] for path in wide]
    measure_paths(world, [i.scan for i in items], paths, [i.path for i in items], [i.goals for i in items])


def test_a_width_must_be_positive(world: MiniWorld, env: BatchedNavEnv, items: list[NavItem]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        beam_search(make_agent(world), env, items, width=0, max_steps=3)
