"""One episode, step by step: what the agent saw as possible, how sure it was, what it did."""

import math
from typing import NamedTuple

import torch

from fq_toolkit.prevalent.follower import FollowerAgent
from fq_toolkit.prevalent.items import NavItem
from fq_toolkit.prevalent.miniworld import MiniWorld
from fq_toolkit.prevalent.r2r_data import Split
from fq_toolkit.prevalent.r2r_evaluation import score_split
from fq_toolkit.prevalent.r2r_training import R2RTraining
from fq_toolkit.prevalent.scoring import R2RScores
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError


class Choice(NamedTuple):
    """One step.

    viewpoint: where the agent was.
    options: viewpoints that it could go to, with the relative heading in radians and the probability.
    stop: probability of stopping.
    target: where it went; None for stopping.
    distance: metres to the goal before the step.
    """

    viewpoint: str
    options: tuple[tuple[str, float, float], ...]
    stop: float
    target: str | None
    distance: float


class Journey(NamedTuple):
    """A whole episode and its scores."""

    split: Split
    item: NavItem
    choices: tuple[Choice, ...]
    path: tuple[str, ...]
    scores: R2RScores


def choose_item(task: R2RTraining, split: str, name: str | None) -> tuple[Split, NavItem]:
    """Return an instruction and its split.

    Args:
        task: of a run.
        split: ``train``, ``val_seen`` or ``val_unseen``.
        name: of the instruction; None takes the first.

    Raises:
        ConfigError: for an unknown split or name, with the nearest known one.
    """
    splits = {"train": task.train, **task.validation}
    if split not in splits:
        raise ConfigError(f"the run has no split {split!r}; {nearest(split, list(splits))}")
    items = {item.instr_id: item for item in splits[split].items}
    if name is not None and name not in items:
        raise ConfigError(f"{split} has no instruction {name!r}; {nearest(name, list(items)[:20])}")
    return splits[split], splits[split].items[0] if name is None else items[name]


@torch.no_grad()
def walk(agent: FollowerAgent, split: Split, item: NavItem, *, max_steps: int) -> Journey:
    """Let the agent follow one instruction greedily and note what it could have done.

    Raises:
        DataError: for an item that does not fit the world.
    """
    agent.eval()
    env = split.env(agent.device)
    observation = env.reset([item])
    reading = agent.read([item])
    state, choices = reading.state, []
    for _ in range(max_steps):
        log_probs, _, state = agent(reading, state, observation)
        action = log_probs.argmax(-1)
        state = agent.act(state, action)
        choices.append(_note(split, item, observation, log_probs[0].exp().tolist(), int(action)))
        observation, _, done = env.step(action)
        if bool(done.all()):
            break
    record = env.trajectories()
    path = tuple(pose[0] for pose in record[0]["trajectory"])
    return Journey(split, item, tuple(choices), path, score_split(split._replace(items=[item]), record))


def _note(split: Split, item: NavItem, observation: object, chances: list[float], action: int) -> Choice:
    """Return one step as it is told."""
    viewpoint = observation.viewpoints[0]  # type: ignore[attr-defined]
    headings = observation.candidate_headings[0].tolist()  # type: ignore[attr-defined]
    scan = split.world.scan(item.scan)
    here = scan.locate(viewpoint)
    count = int(scan.mask[here].sum())
    names = [scan.viewpoints[int(scan.neighbors[here, slot])] for slot in range(count)]
    options = tuple((name, headings[1 + slot], chances[1 + slot]) for slot, name in enumerate(names))
    target = names[action - 1] if action else None
    distance = float(observation.distance[0])  # type: ignore[attr-defined]
    return Choice(viewpoint, options, chances[0], target, distance)


def describe(split: Split, scan: str, viewpoint: str) -> str:
    """Return the name of a viewpoint, in a MiniWorld with what stands there."""
    if isinstance(split.world, MiniWorld):
        return f"{viewpoint} ({split.world.landmark(scan, viewpoint)})"
    return viewpoint


def narrate(journey: Journey) -> str:
    """Return an episode as text, a few lines a step."""
    split, item = journey.split, journey.item
    lines = [f"{item.instr_id} in {item.scan}", f'"{item.instruction}"', ""]
    for number, choice in enumerate(journey.choices, start=1):
        place = describe(split, item.scan, choice.viewpoint)
        lines.append(f"step {number}: at {place}, {choice.distance:.1f} m from the goal")
        mark = "->" if choice.target is None else "  "
        lines.append(f"  {mark} {100 * choice.stop:5.1f} %  stop")
        for name, heading, chance in choice.options:
            mark = "->" if name == choice.target else "  "
            where = describe(split, item.scan, name)
            lines.append(f"  {mark} {100 * chance:5.1f} %  {math.degrees(heading):+5.0f} degrees to {where}")
    scores = journey.scores
    verdict = "reached the goal" if scores.SR else f"ended {scores.NE:.1f} m from the goal"
    lines += [
        "",
        f"{verdict}: walked {scores.TL:.1f} m, SPL {scores.SPL:.2f}, nDTW {scores.nDTW:.2f}",
        *(["features synthesised: the agent saw noise"] if split.synthesised else []),
    ]
    return "\n".join(lines) + "\n"
