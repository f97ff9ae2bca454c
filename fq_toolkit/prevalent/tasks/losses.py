"""The two losses of the follower: imitation of the teacher, and advantage actor-critic."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.prevalent.model.rollout import Rollout


class ActorCriticLoss(NamedTuple):
    """Parts of the loss, each divided by the number of actions; the equations are in `a2c_loss`.

    loss: actor + critic - entropy_weight * entropy.
    actor: policy gradient.
    critic: squared error of the values.
    entropy: of the policy.
    """

    loss: Tensor
    actor: Tensor
    critic: Tensor
    entropy: Tensor


def imitation_loss(rollout: Rollout) -> Tensor:
    r"""Return the mean cross-entropy of the teacher's actions, over all steps of agents that still walk.

    .. math:: L_{IL} = -\frac{1}{N} \sum_t \log p(a_t^* \mid x, s_t),

    with the instruction x, the states s_t that the agent came to and the action a_t^* that leads along a
    shortest path from there.

    Args:
        rollout: by any feedback: in every state the teacher says what it would do.

    Returns:
        0-dim.

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.3; PREVALENT, arXiv 2002.10638, section 5, trains so.
    """
    # -1 is ignored: an agent that has stopped learns nothing from where it stands.
    wanted = rollout.teacher.masked_fill(~rollout.active, -1)
    total = F.nll_loss(rollout.log_probs.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum")
    return total / (wanted >= 0).sum().clamp(min=1)


def discounted_returns(rewards: Tensor, active: Tensor, final_value: Tensor, gamma: float) -> Tensor:
    r"""Return the discounted return of each step.

    .. math:: R_t = r_t + \gamma R_{t+1}, \quad R_T = V(s_T).

    Args:
        rewards: (T, B).
        active: bool (T, B); a step of a stopped agent has no reward and passes the return on.
        final_value: (B,), the value V(s_T) of the state after the last step, 0 for agents that stopped.
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
    r"""Return the loss of advantage actor-critic.

    .. math::
        A_t = R_t - V(s_t), \quad
        L = \frac{1}{N} \sum_t \bigl( -\log p(a_t \mid s_t) A_t + \tfrac12 (R_t - V(s_t))^2
        - \beta H(p(\cdot \mid s_t)) \bigr),

    with the returns of `discounted_returns` and no gradient through the advantage of the first term.

    Args:
        rollout: with ``"sample"``: the policy gradient needs actions that the policy itself drew.
        gamma: discount.
        entropy_weight: the beta above.

    Returns:
        0-dim parts, each divided by the number of actions of agents that had not stopped.

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.3 and appendix.
    """
    active = rollout.active
    count = active.sum().clamp(min=1)
    returns = discounted_returns(rollout.rewards, active, rollout.final_value, gamma)
    advantage = (returns - rollout.values).detach()  # only its own term trains the critic
    chosen = rollout.log_probs.gather(-1, rollout.actions[..., None]).squeeze(-1)
    # -inf times a probability of 0 is NaN, also in the gradient: padding is masked before the product.
    possible = rollout.log_probs > -torch.inf
    safe = rollout.log_probs.masked_fill(~possible, 0.0)
    entropy = -(safe.exp() * safe).sum(-1)
    actor = (-chosen * advantage).masked_fill(~active, 0.0).sum() / count
    critic = ((returns - rollout.values) ** 2 / 2).masked_fill(~active, 0.0).sum() / count
    entropy = entropy.masked_fill(~active, 0.0).sum() / count
    return ActorCriticLoss(actor + critic - entropy_weight * entropy, actor, critic, entropy)
