"""The two losses of the follower: imitation of the teacher, and advantage actor-critic."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.prevalent.model.rollout import Rollout


class ActorCriticLoss(NamedTuple):
    """Parts of the loss, each divided by the number of actions.

    loss: actor + critic - entropy_weight * entropy.
    actor: -log p(action) * advantage.
    critic: (return - value)^2 / 2.
    entropy: of the policy.
    """

    loss: Tensor
    actor: Tensor
    critic: Tensor
    entropy: Tensor


def imitation_loss(rollout: Rollout) -> Tensor:
    """Return the mean cross-entropy of the teacher's actions over all actions of agents that still walk.

    Args:
        rollout: by any feedback: the teacher says at each state what it would do.

    Returns:
        0-dim.

    Source: PREVALENT, arXiv 2002.10638, section 5; the teacher is the next step on a shortest path.
    """
    wanted = rollout.teacher.masked_fill(~rollout.active, -1)
    total = F.nll_loss(rollout.log_probs.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum")
    return total / (wanted >= 0).sum().clamp(min=1)


def discounted_returns(rewards: Tensor, active: Tensor, final_value: Tensor, gamma: float) -> Tensor:
    """Return what follows each step: reward + gamma * what follows the next one.

    Args:
        rewards: (T, B).
        active: bool (T, B); the reward of a step by a stopped agent is not counted.
        final_value: (B,), what follows the last step.
        gamma: discount.

    Returns:
        (T, B).

    Example:
        >>> rewards = torch.tensor([[1.0], [2.0]])
        >>> discounted_returns(rewards, torch.ones(2, 1, dtype=torch.bool), torch.zeros(1), 0.5).tolist()
        [[2.0], [2.0]]
    """
    following, returns = final_value, []
    for reward, walks in zip(reversed(rewards), reversed(active), strict=True):
        following = torch.where(walks, reward + gamma * following, following)
        returns.append(following)
    return torch.stack(returns[::-1])


def a2c_loss(rollout: Rollout, *, gamma: float = 0.9, entropy_weight: float = 0.01) -> ActorCriticLoss:
    """Return the loss of advantage actor-critic.

    Args:
        rollout: by ``"sample"``.
        gamma: discount.
        entropy_weight: of the entropy.

    Returns:
        0-dim parts, each divided by the number of actions of agents that had not stopped.

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.3 and appendix.
    """
    active = rollout.active
    count = active.sum().clamp(min=1)
    returns = discounted_returns(rollout.rewards, active, rollout.final_value, gamma)
    advantage = (returns - rollout.values).detach()
    chosen = rollout.log_probs.gather(-1, rollout.actions[..., None]).squeeze(-1)
    possible = rollout.log_probs > -torch.inf
    safe = rollout.log_probs.masked_fill(~possible, 0.0)
    entropy = -(safe.exp() * safe).sum(-1)
    actor = (-chosen * advantage).masked_fill(~active, 0.0).sum() / count
    critic = ((returns - rollout.values) ** 2 / 2).masked_fill(~active, 0.0).sum() / count
    entropy = entropy.masked_fill(~active, 0.0).sum() / count
    return ActorCriticLoss(actor + critic - entropy_weight * entropy, actor, critic, entropy)
