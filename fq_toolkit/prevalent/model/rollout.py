"""Rollouts: a batch of agents walks until all have stopped."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem

Feedback = Literal["teacher", "student", "sample", "argmax"]


class Rollout(NamedTuple):
    """The walk of a batch of agents over T steps; where ``active`` is false an agent had stopped before.

    log_probs: (T, B, A), -inf for padding.
    actions: int64 (T, B).
    teacher: int64 (T, B), -1 for agents that had stopped and items without a goal.
    rewards: (T, B).
    values: (T, B), values of the critic.
    active: bool (T, B).
    final_value: (B,), value of the critic after the last step; 0 for agents that stopped.
    trajectories: B records in the official submission format.
    """

    log_probs: Tensor
    actions: Tensor
    teacher: Tensor
    rewards: Tensor
    values: Tensor
    active: Tensor
    final_value: Tensor
    trajectories: list[dict[str, Any]]


def rollout(
    agent: FollowerAgent,
    env: BatchedNavEnv,
    items: Sequence[NavItem],
    feedback: Feedback = "argmax",
    *,
    max_steps: int = 20,
    teacher_probability: float = 0.5,
    feature_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Let a batch of agents walk until all have stopped.

    Args:
        agent: the agent; its mode decides about dropout.
        env: an environment that returns tensors on the agent's device, with features.
        items: B tasks.
        feedback: who acts: the ``"teacher"``; the agent, by ``"sample"`` or by ``"argmax"``; or the
            ``"student"``, a sampling agent replaced by the teacher with some probability in each step
            (scheduled sampling).
        max_steps: number of steps after which an agent that has not stopped ends where it is.
        teacher_probability: probability of the teacher under ``"student"``.
        feature_mask: (D,), mask of environment dropout, the same for the whole batch.
        generator: random source of the draws, on the CPU.

    Raises:
        ValueError: for unknown feedback, an environment of arrays, or a teacher that knows no goal.
        DataError: for items that do not fit the environment.
    """
    if feedback not in get_args(Feedback):
        raise ValueError(
            f"feedback must be one of {', '.join(map(repr, get_args(Feedback)))}, got {feedback!r}"
        )
    if env.device is None or env.layout != "interleaved":
        raise ValueError("the follower needs BatchedNavEnv(..., device=..., layout='interleaved')")
    observation = env.reset(items)
    # Checked before the first step: the loss of a teacher that says -1 would be no error but nonsense.
    if feedback in ("teacher", "student"):
        lost = [item.instr_id for item in items if not item.goals]
        if lost:
            raise ValueError(
                f"item {lost[0]!r} has no goal, so there is no teacher for it; use sample or argmax"
            )
    encoded = agent.read(items)
    state, steps = encoded.state, []
    for _ in range(max_steps):
        log_probs, value, state = agent(encoded, state, observation, feature_mask)
        ended, teacher = observation.ended, observation.teacher  # before the step: they belong to its action
        actions = choose_actions(log_probs.detach(), teacher, feedback, teacher_probability, generator)
        actions = actions.masked_fill(ended, 0)  # the environment ignores them; a loss must find valid ones
        state = agent.act(state, actions)
        observation, reward, done = env.step(actions)
        steps.append((log_probs, actions, teacher, reward.to(value.dtype), value, ~ended))
        if bool(done.all()):  # waits for the device once per step of the whole batch
            break
    final = value.detach() * 0  # an agent that stopped has nothing more to expect
    # Agents cut off at max_steps would have gone on: the critic estimates what they would have got.
    if not bool(observation.ended.all()):
        with torch.no_grad():
            final = agent(encoded, state, observation, feature_mask)[1]
        final = final.masked_fill(observation.ended, 0.0)
    log_probs, actions, teacher, rewards, values, active = (
        torch.stack(part) for part in zip(*steps, strict=True)
    )
    return Rollout(log_probs, actions, teacher, rewards, values, active, final, env.trajectories())


def choose_actions(
    log_probs: Tensor,
    teacher: Tensor,
    feedback: Feedback,
    teacher_probability: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Choose the actions (B,) of one step by the feedback of `rollout`; -1 where there is no teacher."""
    if feedback == "teacher":
        return teacher
    if feedback == "argmax":
        return log_probs.argmax(-1)
    # Inverting the distribution function takes one number per row, whatever the number of actions, so a
    # batch with more neighbours leaves the draws of the others as they are. Two numbers are drawn in any
    # case: "sample" and "student" use the same ones.
    drawn = torch.rand(len(log_probs), 2, generator=generator).to(log_probs.device)
    # In double: float32 sums of many small probabilities would shift the draws.
    below = log_probs.double().exp().cumsum(-1) <= drawn[:, :1]
    last = (log_probs > -torch.inf).sum(-1) - 1  # a sum of 0.999.. must not lead to padding
    sampled = torch.minimum(below.sum(-1), last)
    if feedback == "sample":
        return sampled
    return torch.where(drawn[:, 1] < teacher_probability, teacher, sampled)
