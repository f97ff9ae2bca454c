"""One HANNA episode of a batch: at each step decide whether to ask, perhaps get help, then go on."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.prevalent.model.follower import DecoderState, FollowerAgent
from fq_toolkit.prevalent.model.rollout import choose_actions
from fq_toolkit.prevalent.tasks.hanna.help import Help, Helper
from fq_toolkit.prevalent.text.length_limit import keep_end
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.observation import Observation

_FACTS = 6


class AskModule(nn.Module):
    """Decides whether to ask for help, from the state of the navigation module.

    It reads the decoder's state, the entropy of the actions relative to the largest possible one, the
    probabilities of the likeliest action and of stopping, the shares of requests and of steps left, and the
    time since the last help, because help covers only a few edges. Its loss does not reach the navigation
    module.

    Args:
        state_size: of the navigation module's decoder.
        hidden_size: of its own LSTM.

    Source: HANNA, arXiv 1909.01871, section 5: a help-request module beside the navigation module.
    """

    def __init__(self, state_size: int, hidden_size: int = 32) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cell = nn.LSTMCell(state_size + _FACTS, hidden_size)
        self.score = nn.Linear(hidden_size, 2)

    def forward(
        self,
        attended: Tensor,
        log_probs: Tensor,
        requests_left: Tensor,
        steps_left: float,
        since_told: Tensor,
        state: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Score asking.

        Args:
            attended: (B, state_size), of the decoder.
            log_probs: (B, A), of the actions before any help.
            requests_left: (B,), as a share.
            steps_left: as a share.
            since_told: (B,), the share of the episode since the last help, or since the start.
            state: of the last step, None at the start.

        Returns:
            (B, 2) scores of not asking and of asking, and the new state.
        """
        facts = torch.stack(
            [
                relative_entropy(log_probs),
                log_probs.max(dim=-1).values.exp(),
                log_probs[:, 0].exp(),
                requests_left,
                torch.full_like(requests_left, steps_left),
                since_told,
            ],
            dim=-1,
        )
        hidden, cell = self.cell(torch.cat([attended, facts], dim=-1).detach(), state)
        return self.score(hidden), (hidden, cell)


def relative_entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of each row, 0 to 1, over that of equally likely possible actions.

    Args:
        log_probs: (B, A), -inf for impossible actions.

    Example:
        >>> relative_entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()).tolist()
        [1.0, 0.0]
    """
    possible = log_probs > -torch.inf
    safe = log_probs.masked_fill(~possible, 0.0)
    entropy = (safe.exp() * safe * possible).sum(-1).abs()  # every term is at most 0; abs avoids -0.0
    return entropy / possible.sum(-1).clamp(min=2).log().to(entropy.dtype)


class Walk(NamedTuple):
    """What a batch did, T steps.

    log_probs: (T, B, A), of the actions, after help.
    teacher: int64 (T, B), -1 for agents that had stopped.
    ask_scores: (T, B, 2).
    ask_teacher: bool (T, B), whether it was right to ask.
    may_ask: bool (T, B), whether the agent could.
    mistakes: bool (T, B, A), wrong actions that the agent took at this viewpoint earlier in the episode.
    active: bool (T, B).
    records: B records in the official submission format, with ``agent_ask``.
    heard: of each agent what it was told at each step, None where it did not ask.
    """

    log_probs: Tensor
    teacher: Tensor
    ask_scores: Tensor
    ask_teacher: Tensor
    may_ask: Tensor
    mistakes: Tensor
    active: Tensor
    records: list[dict[str, Any]]
    heard: list[list[str | None]]


class _History:
    """What each agent did in its episode: requests, viewpoints it has help for, and wrong actions."""

    def __init__(self, count: int, requests: int) -> None:
        self.left = [requests] * count
        self.asked: list[set[int]] = [set() for _ in range(count)]
        self.told: list[set[str]] = [set() for _ in range(count)]
        self.wrong: list[dict[int, set[int]]] = [{} for _ in range(count)]

    def hear(self, row: int, node: int, help_: Help, goals: Sequence[str]) -> None:
        """Note what one agent was told. The end of a route is not part of it, unless it is a goal."""
        self.left[row] -= 1
        self.asked[row].add(node)
        self.told[row] = {*help_.path[:-1], *(end for end in help_.path[-1:] if end in goals)}

    def lost(self, viewpoints: Sequence[str]) -> Tensor:
        """Return which agents have no help for where they are, bool (B,)."""
        return torch.tensor([place not in told for place, told in zip(viewpoints, self.told, strict=True)])

    def mistakes(self, nodes: Sequence[int], width: int) -> Tensor:
        """Return which actions were wrong here before, bool (B, width)."""
        marks = torch.zeros(len(nodes), width, dtype=torch.bool)
        for row, node in enumerate(nodes):
            for action in self.wrong[row].get(node, ()):
                marks[row, action] = True
        return marks

    def remember(self, nodes: Sequence[int], actions: Sequence[int], teacher: Sequence[int]) -> None:
        """Note the actions that were wrong; the teacher of an agent that stopped says -1."""
        for row, (node, action, right) in enumerate(zip(nodes, actions, teacher, strict=True)):
            if right >= 0 and action != right:
                self.wrong[row].setdefault(node, set()).add(action)


def with_help(request: str, message: str, agent: FollowerAgent) -> str:
    """Return the text that an agent reads after help: ``<ORA> help <TAR> request``, cut on the left."""
    return keep_end(f"<ORA> {message} <TAR> {request}", agent.vocabulary, agent.max_tokens)


def walk(
    agent: FollowerAgent,
    asker: AskModule,
    env: BatchedNavEnv,
    items: Sequence[NavItem],
    helper: Helper,
    *,
    feedback: Literal["student", "argmax"] = "argmax",
    max_steps: int = 20,
    max_requests: int = 3,
    teacher_probability: float = 0.5,
    uncertain: float = 0.6,
    feature_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Walk:
    """Let a batch of agents look for things until all have stopped.

    An agent may ask once at a viewpoint and ``max_requests`` times in all. Asking is right where the agent is
    lost (it had no help yet, came to the end of the route it was told, or left it), where the action that it
    would have taken is wrong, and where it is uncertain. Help replaces the text that it reads.

    Args:
        agent: the navigation module.
        asker: the help-request module.
        env: gives tensors on the agent's device, with features.
        items: B requests.
        helper: who is asked.
        feedback: ``"student"``: the teachers act with some probability, else actions are drawn;
            ``"argmax"``: the agent acts.
        max_steps: an agent that has not stopped by then ends where it is.
        max_requests: 0 never asks.
        teacher_probability: of ``"student"``.
        uncertain: relative entropy of the actions above which it is right to ask.
        feature_mask: (D,) of environment dropout.
        generator: of the draws, on the CPU.

    Source: HANNA, arXiv 1909.01871, section 5 and 6; conditions for asking simplified to three.
    """
    device, texts = agent.device, list(items)
    observation, history = env.reset(items), _History(len(items), max_requests)
    reading = agent.read(texts)
    state, ask_state, steps = reading.state, None, []
    told_at = torch.zeros(len(items), device=device)
    heard: list[list[str | None]] = [[] for _ in items]
    for number in range(max_steps):
        nodes, ended = observation.node.tolist(), observation.ended
        # Once without help: what the agent would do decides whether it asks.
        log_probs, _, looked = agent(reading, state, observation, feature_mask)
        left = torch.tensor(history.left, device=device, dtype=log_probs.dtype) / max(1, max_requests)
        since = (number - told_at) / max_steps
        scores, ask_state = asker(looked.attended, log_probs, left, 1 - number / max_steps, since, ask_state)
        messages = _messages(helper, items, observation, history)
        may_ask = torch.tensor([row in messages for row in range(len(items))], device=device) & ~ended
        tentative = log_probs.argmax(-1)
        ask_teacher = (tentative != observation.teacher) | (relative_entropy(log_probs) > uncertain)
        ask_teacher = ask_teacher | history.lost(observation.viewpoints).to(device)
        asking = may_ask & _decide(scores, ask_teacher, feedback, teacher_probability, generator)
        if bool(asking.any()):
            for row in asking.nonzero()[:, 0].tolist():
                item, told = items[row], messages[row]
                history.hear(row, nodes[row], told, item.goals)
                texts[row] = item._replace(instruction=with_help(item.instruction, told.text, agent))
            # The text changed, so both the state and the scores of whoever asked start from it.
            reading = agent.read(texts)
            state = _restart(state, reading.state, asking)
            told_at = told_at.masked_fill(asking, number)
            log_probs, _, looked = agent(reading, state, observation, feature_mask)
        teacher = observation.teacher
        actions = choose_actions(log_probs.detach(), teacher, feedback, teacher_probability, generator)
        actions = actions.masked_fill(ended, 0)  # 0 is stopping
        # Mistakes of earlier steps only: the loss is about repeating them.
        mistakes = history.mistakes(nodes, log_probs.shape[-1]).to(device)
        history.remember(nodes, actions.tolist(), teacher.tolist())
        for row, (asked, stopped) in enumerate(zip(asking.tolist(), ended.tolist(), strict=True)):
            if not stopped:
                message = messages.get(row)
                heard[row].append(message.text if asked and message is not None else None)
        state = agent.act(looked, actions)
        steps.append((log_probs, teacher, scores, ask_teacher, may_ask, mistakes, ~ended))
        observation, _, done = env.step(actions)
        if bool(done.all()):
            break
    records = [
        {**record, "agent_ask": [int(text is not None) for text in texts_heard]}
        for record, texts_heard in zip(env.trajectories(), heard, strict=True)
    ]
    parts = {
        name: torch.stack(part) for name, part in zip(Walk._fields, zip(*steps, strict=True), strict=False)
    }
    return Walk(**parts, records=records, heard=heard)


def _messages(
    helper: Helper, items: Sequence[NavItem], observation: Observation, history: _History
) -> dict[int, Help]:
    """Return row -> the help its agent would get now, for rows that may ask and can be helped."""
    messages: dict[int, Help] = {}
    headings, nodes = observation.heading.tolist(), observation.node.tolist()
    for row, (item, viewpoint) in enumerate(zip(items, observation.viewpoints, strict=True)):
        if history.left[row] > 0 and nodes[row] not in history.asked[row]:
            told = helper.help(item.scan, viewpoint, headings[row], item.goals)
            if told is not None:
                messages[row] = told
    return messages


def _decide(
    scores: Tensor,
    teacher: Tensor,
    feedback: str,
    teacher_probability: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Return who asks, bool (B,)."""
    if feedback == "argmax":
        return scores.argmax(-1) == 1
    # Both draws at once: the random stream does not depend on what is decided.
    drawn = torch.rand(len(scores), 2, generator=generator).to(scores.device)
    sampled = drawn[:, 0] < scores.detach().float().softmax(-1)[:, 1]
    return torch.where(drawn[:, 1] < teacher_probability, teacher, sampled)


def _restart(state: DecoderState, fresh: DecoderState, rows: Tensor) -> DecoderState:
    """Return the state with some rows reset: help starts a new route."""
    return DecoderState(
        *(torch.where(rows[:, None], new, old) for new, old in zip(fresh, state, strict=True))
    )
