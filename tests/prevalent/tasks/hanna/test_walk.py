"""Episodes of HANNA: who may ask, what help changes, and the three losses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import BatchedNavEnv, MiniWorld
from fq_toolkit.prevalent.miniworld.requests import request_items
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.tasks.agents import build_follower
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.help import MiniHelper, RouteHelper
from fq_toolkit.prevalent.tasks.hanna.training import ask_loss, curiosity_loss, navigation_loss
from fq_toolkit.prevalent.tasks.hanna.walk import AskModule, Walk, relative_entropy, walk, with_help


@pytest.fixture(scope="module")
def agent(mini: MiniWorld) -> FollowerAgent:
    torch.manual_seed(0)
    config = HannaConfig(hidden_size=16, feature_dim=64)
    texts = [item.instruction for item in [*request_items(mini, 10), *mini.items(10)]]
    return build_follower(config, [*texts, "<ORA> <TAR>"]).eval()


class Asker(AskModule):
    """Always wants to ask, or never."""

    def __init__(self, wants: bool) -> None:
        super().__init__(16)
        self.wants = wants

    def forward(self, *arguments: Any) -> Any:
        scores, state = super().forward(*arguments)
        return scores * 0 + torch.tensor([0.0, 1.0 if self.wants else -1.0]), state


def run(
    mini: MiniWorld, agent: FollowerAgent, wants: bool = True, helper: Any = None, **options: Any
) -> Walk:
    env = BatchedNavEnv(mini, mini.features(), device="cpu")
    with torch.no_grad():
        return walk(agent, Asker(wants), env, request_items(mini, 6), helper or MiniHelper(mini), **options)


@given(limit=st.integers(0, 3), seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_requests_are_limited_and_one_a_viewpoint(
    mini: MiniWorld, agent: FollowerAgent, limit: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    done = run(mini, agent, max_requests=limit, max_steps=6, feedback="student", generator=generator)
    for record in done.records:
        asked, places = record["agent_ask"], [pose[0] for pose in record["trajectory"]]
        assert sum(asked) <= limit
        at = [place for place, flag in zip(places, asked, strict=False) if flag]
        assert len(at) == len(set(at))
        assert len(places) <= len(asked) + 1


def test_it_asks_when_it_wants_to_and_somebody_can_help(mini: MiniWorld, agent: FollowerAgent) -> None:
    assert all(r["agent_ask"][0] == 1 for r in run(mini, agent, max_steps=3).records)
    assert not any(sum(r["agent_ask"]) for r in run(mini, agent, wants=False, max_steps=3).records)
    nobody = RouteHelper(mini, [])
    done = run(mini, agent, helper=nobody, max_steps=3)
    assert not any(sum(record["agent_ask"]) for record in done.records)
    assert not done.may_ask.any()


def test_help_changes_what_is_read_and_nothing_else_without_it(mini: MiniWorld, agent: FollowerAgent) -> None:
    with_it, without = run(mini, agent, max_steps=1), run(mini, agent, wants=False, max_steps=1)
    assert not torch.equal(with_it.log_probs, without.log_probs)
    again = run(mini, agent, max_requests=0, max_steps=1)
    assert torch.equal(again.log_probs, without.log_probs)


def test_asking_is_right_where_nothing_was_told(mini: MiniWorld, agent: FollowerAgent) -> None:
    generator = torch.Generator().manual_seed(0)
    done = run(mini, agent, max_requests=2, feedback="student", teacher_probability=0.5, generator=generator)
    assert done.ask_teacher[0].all(), "at the start nothing was told"
    helper, seen = MiniHelper(mini), 0
    for row, (item, record) in enumerate(zip(request_items(mini, 6), done.records, strict=True)):
        told: set[str] = set()
        for step, (place, text) in enumerate(
            zip([pose[0] for pose in record["trajectory"]], done.heard[row], strict=False)
        ):
            if place not in told:
                seen += 1
                assert done.ask_teacher[step, row], "lost"
            if text is not None:
                found = helper.help(item.scan, place, 0.0, item.goals)
                assert found is not None
                told = {*found.path} - ({found.path[-1]} - set(item.goals))
    assert seen > 6, "some left the way that they were told"


def test_after_help_the_request_is_still_read(agent: FollowerAgent) -> None:
    assert with_help("find a sofa", "go left", agent) == "<ORA> go left <TAR> find a sofa"
    long = with_help("find a sofa", "left " * 200, agent)
    assert long.endswith("<TAR> find a sofa")
    assert len(agent.vocabulary.pieces(long)) == 78


def test_mistakes_are_remembered_by_place(mini: MiniWorld, agent: FollowerAgent) -> None:
    generator = torch.Generator().manual_seed(1)
    done = run(mini, agent, max_steps=12, feedback="student", teacher_probability=0.0, generator=generator)
    assert not done.mistakes[0].any()
    assert done.mistakes.any()
    for row, record in enumerate(done.records):
        places = [pose[0] for pose in record["trajectory"]]
        for step in range(len(places)):
            if done.mistakes[step, row].any():
                assert places[step] in places[:step]
    chosen = done.mistakes & done.active[..., None]
    assert not chosen[..., 0].any(), "who stopped does not come back"


def small_walk(**parts: Any) -> Walk:
    log_probs = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]).log()
    made = {
        "log_probs": log_probs,
        "teacher": torch.tensor([[1], [-1]]),
        "ask_scores": torch.tensor([[[0.0, math.log(3)]], [[0.0, 0.0]]]),
        "ask_teacher": torch.tensor([[True], [False]]),
        "may_ask": torch.tensor([[True], [False]]),
        "mistakes": torch.tensor([[[False, True]], [[True, False]]]),
        "active": torch.tensor([[True], [False]]),
        "records": [],
        "heard": [],
    }
    return Walk(**{**made, **parts})


def test_losses_are_their_formulas() -> None:
    done = small_walk()
    assert float(navigation_loss(done)) == pytest.approx(-math.log(0.75))
    assert float(ask_loss(done)) == pytest.approx(-math.log(0.75))
    assert float(curiosity_loss(done)) == pytest.approx(-math.log(0.25))
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    idle = small_walk(active=nothing, may_ask=nothing)
    assert [float(loss(idle)) for loss in (navigation_loss, ask_loss, curiosity_loss)] == [0.0, 0.0, 0.0]


def test_curiosity_is_finite_with_its_gradient_where_a_mistake_is_certain() -> None:
    scores = torch.tensor([[[0.0, 60.0]]], requires_grad=True)
    done = small_walk(
        log_probs=scores.log_softmax(-1),
        mistakes=torch.tensor([[[False, True]]]),
        active=torch.tensor([[True]]),
    )
    loss = curiosity_loss(done)
    loss.backward()
    assert math.isfinite(loss.item())
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_relative_entropy_is_between_0_and_1(possible: int, seed: int) -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) * 5
    scores[:, possible:] = -torch.inf
    found = relative_entropy(scores.log_softmax(-1))
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    flat = relative_entropy(torch.where(scores > -torch.inf, 0.0, scores).log_softmax(-1))
    torch.testing.assert_close(flat, torch.full((4,), float(possible > 1)))


def test_the_ask_module_teaches_the_agent_nothing(mini: MiniWorld, agent: FollowerAgent) -> None:
    env = BatchedNavEnv(mini, mini.features(), device="cpu")
    asker = AskModule(16)
    done = walk(agent, asker, env, request_items(mini, 4), MiniHelper(mini), max_steps=2)
    ask_loss(done).backward()
    assert all(weight.grad is None for weight in agent.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in asker.parameters())
