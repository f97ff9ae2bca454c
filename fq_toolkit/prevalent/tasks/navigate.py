"""One episode, step by step: what the agent saw as possible, how sure it was, what it did."""

import math
from typing import NamedTuple

import torch

from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.navigator import Figures, NavigatorTask
from fq_toolkit.prevalent.world.angles import wrap
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError

# Texts for the scores that only some tasks have.
_MORE = {"nDTW": "nDTW {:.2f}", "GP": "goal progress {:.1f} m", "requests": "{:.0f} requests for help"}


class Choice(NamedTuple):
    """One step.

    viewpoint: where the agent was.
    options: viewpoints that it could go to, with the relative heading in radians and the probability.
    stop: probability of stopping.
    target: where it went; None for stopping.
    distance: metres to the nearest goal before the step.
    told: what it heard here when it asked for help; None where it did not ask.
    """

    viewpoint: str
    options: tuple[tuple[str, float, float], ...]
    stop: float
    target: str | None
    distance: float
    told: str | None


class Journey(NamedTuple):
    """A whole episode and its scores."""

    split: Split
    item: NavItem
    choices: tuple[Choice, ...]
    path: tuple[str, ...]
    scores: Figures


def choose_item(task: NavigatorTask, split: str, name: str | None) -> tuple[Split, NavItem]:
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
def walk(task: NavigatorTask, split: Split, item: NavItem) -> Journey:
    """Let the agent do one item greedily; record its options at each step and the help it got.

    Raises:
        DataError: for an item that does not fit the world.
    """
    task.networks.eval()
    trace = task.trace(split, [item])
    record = trace.records[0]
    heard = trace.heard[0] if trace.heard is not None else [None] * len(trace.log_probs)
    scan, poses = split.world.scan(item.scan), record["trajectory"]
    goals = [scan.locate(goal) for goal in item.goals]
    choices = []
    for number, (log_probs, told) in enumerate(zip(trace.log_probs[:, 0], heard, strict=True)):
        viewpoint, heading, _ = poses[number]
        here, chances = scan.locate(viewpoint), log_probs.exp().tolist()
        options = tuple(
            (
                scan.viewpoints[int(scan.neighbors[here, slot])],
                float(wrap(scan.headings[here, slot] - heading)),
                chances[1 + slot],  # action 0 is stopping
            )
            for slot in range(int(scan.mask[here].sum()))
        )
        target = poses[number + 1][0] if number + 1 < len(poses) else None  # stopping adds no pose
        distance = float(scan.distances[here, goals].min(initial=math.inf))
        choices.append(Choice(viewpoint, options, chances[0], target, distance, told))
    path = tuple(pose[0] for pose in poses)
    return Journey(split, item, tuple(choices), path, task.score(split._replace(items=[item]), [record]))


def describe(split: Split, scan: str, viewpoint: str) -> str:
    """Return the name of a viewpoint, in a MiniWorld with its landmark."""
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
        if choice.told is not None:
            lines.append(f'     asks for help and hears "{choice.told}"')
        mark = "->" if choice.target is None else "  "
        lines.append(f"  {mark} {100 * choice.stop:5.1f} %  stop")
        for name, heading, chance in choice.options:
            mark = "->" if name == choice.target else "  "
            where = describe(split, item.scan, name)
            lines.append(f"  {mark} {100 * chance:5.1f} %  {math.degrees(heading):+5.0f} degrees to {where}")
    scores = journey.scores._asdict()
    verdict = "reached the goal" if scores["SR"] else f"ended {scores['NE']:.1f} m from the goal"
    more = [told.format(scores[name]) for name, told in _MORE.items() if name in scores]
    lines += [
        "",
        ", ".join([f"{verdict}: walked {scores['TL']:.1f} m", f"SPL {scores['SPL']:.2f}", *more]),
        *(["features synthesised: the agent saw noise"] if split.synthesised else []),
    ]
    return "\n".join(lines) + "\n"
