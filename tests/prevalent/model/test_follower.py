"""The follower: what it is fed, who acts, what stopped agents contribute, and that its losses are right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import BatchedNavEnv, MiniWorld, angle_features, measure_paths
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.encoder import PrevalentModel
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.rollout import Rollout, rollout
from fq_toolkit.prevalent.tasks.losses import a2c_loss, discounted_returns, imitation_loss
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask, mask_features
from fq_toolkit.training.errors import ConfigError

WIDTH = 8


def make_agent(world: MiniWorld, *, seed: int = 0, cross_modal: bool = True) -> FollowerAgent:
    """Return a tiny agent without dropout."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.train(item.instruction for item in world.items(40))
    sizes = PrevalentConfig.tiny(vocab_size=len(vocabulary), vision_size=WIDTH + 128)
    sizes = replace(
        sizes, hidden_size=16, num_heads=2, text_layers=1, cross_layers=1, intermediate_size=16, init_std=0.3
    )
    agent = FollowerAgent(
        PrevalentModel(sizes),
        vocabulary,
        feature_dim=WIDTH,
        hidden_size=16,
        dropout=0.0,
        cross_modal=cross_modal,
    )
    return agent.eval()


@pytest.fixture(scope="module")
def world() -> MiniWorld:
    return MiniWorld(5, num_scans=2, feature_dim=WIDTH)


@pytest.fixture(scope="module")
def env(world: MiniWorld) -> BatchedNavEnv:
    return BatchedNavEnv(world, world.features(), device="cpu")


def test_following_the_teacher_reaches_the_goal(world: MiniWorld, env: BatchedNavEnv) -> None:
    items = world.items(12)
    walk = rollout(make_agent(world), env, items, "teacher")
    paths = [[pose[0] for pose in record["trajectory"]] for record in walk.trajectories]
    found = measure_paths(
        world, [i.scan for i in items], paths, [i.path for i in items], [i.goals for i in items]
    )
    assert found.SPL.min() == 1.0
    assert torch.equal(walk.actions[walk.active], walk.teacher[walk.active])


@pytest.mark.parametrize("feedback", ["teacher", "student", "sample", "argmax"])
def test_only_possible_actions_are_taken_and_stopped_agents_stay(
    world: MiniWorld, env: BatchedNavEnv, feedback: str
) -> None:
    walk = rollout(make_agent(world), env, world.items(16), feedback, max_steps=6)  # type: ignore[arg-type]
    chosen = walk.log_probs.gather(-1, walk.actions[..., None]).squeeze(-1)
    assert bool((chosen > -torch.inf).all())
    torch.testing.assert_close(walk.log_probs.exp().sum(-1), torch.ones(walk.actions.shape))
    assert bool((walk.active[1:] <= walk.active[:-1]).all())
    stopped = (walk.actions == 0) & walk.active
    assert int(stopped.sum(0).max()) <= 1
    assert bool((walk.rewards[~walk.active] == 0).all())
    for row, record in enumerate(walk.trajectories):
        moves = int(((walk.actions[:, row] > 0) & walk.active[:, row]).sum())
        assert len(record["trajectory"]) == moves + 1


def test_an_agent_does_not_see_the_rest_of_its_batch(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, items = make_agent(world), world.items(6)
    together = rollout(agent, env, items, "teacher")
    for row, item in enumerate(items):
        alone = rollout(agent, env, [item], "teacher")
        steps = len(alone.actions)
        width = min(alone.log_probs.shape[-1], together.log_probs.shape[-1])
        torch.testing.assert_close(
            together.log_probs[:steps, row, :width].exp(),
            alone.log_probs[:, 0, :width].exp(),
            atol=1e-5,
            rtol=1e-4,
        )


def test_the_model_gets_angles_in_the_layout_of_pretraining(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, seen = make_agent(world), []
    agent.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[2]), with_kwargs=True)
    observation = env.reset(world.items(3))
    reading = agent.read(observation.items)
    agent(reading, reading.state, observation)
    views = torch.arange(36)
    relative = (views[None, :] % 12 - observation.view[:, None] % 12) * np.pi / 6
    expected = angle_features(relative, ((views // 12 - 1) * np.pi / 6).expand_as(relative), layout="blocked")
    torch.testing.assert_close(seen[0][..., WIDTH:], expected, atol=1e-5, rtol=0)


def test_scheduled_sampling_goes_from_the_teacher_to_the_agent(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, items = make_agent(world), world.items(16)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    forced = rollout(agent, env, items, "student", teacher_probability=1.0, generator=generators[0])
    assert torch.equal(forced.actions[forced.active], forced.teacher[forced.active])
    free = rollout(agent, env, items, "student", teacher_probability=0.0, generator=generators[0])
    assert not torch.equal(free.actions[free.active], free.teacher[free.active])


def test_samples_come_from_the_distribution(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, item = make_agent(world), world.items(1)[0]
    items = [item._replace(instr_id=str(i)) for i in range(800)]
    walk = rollout(agent, env, items, "sample", max_steps=1, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(walk.actions[0], minlength=walk.log_probs.shape[-1]) / len(items)
    torch.testing.assert_close(shares, walk.log_probs[0, 0].exp().detach(), atol=0.07, rtol=0)


def loops(walk: Rollout, gamma: float, entropy_weight: float) -> tuple[float, float]:
    """Return both losses, item by item and step by step."""
    imitation, actions, total, count = 0.0, 0, 0.0, 0
    steps, batch = walk.actions.shape
    for row in range(batch):
        following = float(walk.final_value[row])
        for t in reversed(range(steps)):
            if not walk.active[t, row]:
                continue
            log_probs = walk.log_probs[t, row].detach().double()
            if walk.teacher[t, row] >= 0:
                imitation -= float(log_probs[walk.teacher[t, row]])
                actions += 1
            following = float(walk.rewards[t, row]) + gamma * following
            advantage = following - float(walk.values[t, row].detach())
            possible = log_probs[log_probs > -torch.inf]
            entropy = -float((possible.exp() * possible).sum())
            total += -float(log_probs[walk.actions[t, row]]) * advantage + advantage**2 / 2
            total -= entropy_weight * entropy
            count += 1
    return imitation / actions, total / count


@pytest.mark.parametrize("max_steps", [2, 9])
def test_losses_are_those_of_a_loop_over_items(world: MiniWorld, env: BatchedNavEnv, max_steps: int) -> None:
    walk = rollout(make_agent(world), env, world.items(10), "sample", max_steps=max_steps)
    imitation, actor_critic = loops(walk, 0.9, 0.01)
    assert float(imitation_loss(walk).detach()) == pytest.approx(imitation, rel=1e-5)
    found = a2c_loss(walk, gamma=0.9, entropy_weight=0.01).loss.detach()
    assert float(found) == pytest.approx(actor_critic, rel=1e-4)


def test_stopped_agents_contribute_no_gradient(world: MiniWorld, env: BatchedNavEnv) -> None:
    walk = rollout(make_agent(world), env, world.items(10), "sample", max_steps=6)
    assert not bool(walk.active.all())
    leaves = [part.detach().requires_grad_() for part in (walk.log_probs, walk.values)]
    copy = walk._replace(log_probs=leaves[0], values=leaves[1])
    (imitation_loss(copy) + a2c_loss(copy).loss).backward()
    for leaf in leaves:
        assert bool((leaf.grad[~walk.active] == 0).all())
        assert bool(leaf.grad.isfinite().all())


def test_gradients_are_those_of_finite_differences(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, items = make_agent(world).double(), world.items(2)
    items = [item._replace(path=item.path[:2], goals=item.path[1:2]) for item in items]
    weight = agent.decoder.neighbor_query.weight

    class Doubled:
        """The same observation in double precision."""

        def __init__(self, observation) -> None:
            self._inner = observation

        def __getattr__(self, name):
            value = getattr(self._inner, name)
            if name in ("view_features", "candidate_features"):
                return lambda: value().double()
            return value

    def loss() -> torch.Tensor:
        reading = agent.read(items)
        state, total, observation = reading.state, 0.0, env.reset(items)
        for _ in range(2):
            log_probs, value, state = agent(reading, state, Doubled(observation))
            teacher = observation.teacher.clamp(min=0)
            total = total - log_probs.gather(1, teacher[:, None]).sum() + value.square().sum()
            state = agent.act(state, teacher)
            observation = env.step(teacher).observation
        return total

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (3, 5), (WIDTH, 2), (WIDTH + 40, 7)):
        with torch.no_grad():
            old = float(weight[place])
            weight[place] = old + 1e-5
            above = float(loss())
            weight[place] = old - 1e-5
            below = float(loss())
            weight[place] = old
        assert float(gradient[place]) == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-7)


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(-1, 1),
)
@settings(max_examples=30, deadline=None)
def test_returns_are_discounted_sums(steps: list[tuple[float, bool]], gamma: float, final: float) -> None:
    rewards = torch.tensor([[reward] for reward, _ in steps], dtype=torch.float64)
    active = torch.tensor([[walks] for _, walks in steps])
    found = discounted_returns(rewards, active, torch.tensor([final], dtype=torch.float64), gamma)
    for t in range(len(steps)):
        counted = [reward for reward, walks in steps[t:] if walks]
        expected = sum(gamma**i * r for i, r in enumerate(counted)) + gamma ** len(counted) * final
        assert float(found[t, 0]) == pytest.approx(expected, abs=1e-9)


def test_one_mask_hides_the_same_channels_everywhere(world: MiniWorld, env: BatchedNavEnv) -> None:
    mask = draw_feature_mask(1000, 0.4, generator=torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.6))}
    assert float((mask == 0).float().mean()) == pytest.approx(0.4, abs=0.05)
    mask = torch.zeros(WIDTH)
    hidden = mask_features(env.reset(world.items(2)).view_features(), mask)
    assert bool((hidden[..., :WIDTH] == 0).all())
    assert bool((hidden[..., WIDTH:] != 0).any())
    agent, dark = make_agent(world), BatchedNavEnv(world, _blind(world), device="cpu")
    items = world.items(4)
    masked = rollout(agent, env, items, "teacher", feature_mask=mask)
    torch.testing.assert_close(masked.log_probs, rollout(agent, dark, items, "teacher").log_probs)
    with pytest.raises(ValueError, match="must be in"):
        draw_feature_mask(4, 1.0)


def _blind(world: MiniWorld):
    from fq_toolkit.prevalent import FeatureStore

    store = world.features()
    return FeatureStore(store.keys, np.zeros((len(store), 36, WIDTH), dtype=np.float32))


def test_mistakes_are_named(world: MiniWorld, env: BatchedNavEnv) -> None:
    agent, items = make_agent(world), world.items(2)
    with pytest.raises(ValueError, match="feedback must be one of"):
        rollout(agent, env, items, "greedy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device"):
        rollout(agent, BatchedNavEnv(world, world.features()), items)
    secret = [items[0]._replace(goals=())]
    with pytest.raises(ValueError, match="has no goal"):
        rollout(agent, env, secret, "teacher")
    assert rollout(agent, env, secret, "argmax", max_steps=2).trajectories
    with pytest.raises(ValueError, match="hidden_size must be even"):
        FollowerAgent(agent.model, agent.vocabulary, feature_dim=WIDTH, hidden_size=5)
    with pytest.raises(ConfigError, match="features of width 8, the world has features of width 64"):
        FollowerAgent(agent.model, agent.vocabulary, feature_dim=64)
