"""How good a follower is: official scores of a split, by greedy, sampled or beam decoding."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch

from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.metrics.path_metrics import measure_paths
from fq_toolkit.prevalent.metrics.scoring import R2RScores
from fq_toolkit.prevalent.model.beam import beam_search
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.rollout import rollout
from fq_toolkit.training.errors import ConfigError

Decoding = Literal["greedy", "sample", "beam"]


class Decoder(NamedTuple):
    """How an agent chooses its actions when it is measured.

    decoding: the likeliest action, a drawn one, or the likeliest path that beam search finds.
    beam_width: paths that beam search keeps.
    seed: of drawn actions.
    """

    decoding: Decoding = "greedy"
    beam_width: int = 5
    seed: int = 0

    def check(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: for unknown decoding or a width below 1.
        """
        if self.decoding not in get_args(Decoding):
            raise ConfigError(f"decoding is {self.decoding!r}; expected 'greedy', 'sample' or 'beam'")
        if self.beam_width < 1:
            raise ConfigError(f"beam_width is {self.beam_width}; expected at least 1")


GREEDY = Decoder()

KNOWN_FIGURES = (
    "published, R2R test unseen with ResNet features: SPL 47 % before and 51 % with PREVALENT "
    "(abstract of arXiv 2002.10638)"
)


class R2REvaluation(NamedTuple):
    """Scores by split."""

    scores: Mapping[str, R2RScores]
    counts: Mapping[str, int]
    synthesised: bool
    decoding: str

    def __str__(self) -> str:
        lines = []
        for name, scores in self.scores.items():
            figures = "  ".join(
                f"{key} {value:.2f} m" if key in ("TL", "NE") else f"{key} {100 * value:.1f} %"
                for key, value in scores._asdict().items()
                if key != "OE"
            )
            lines.append(f"{name} ({self.counts[name]} instructions, {self.decoding}): {figures}")
        if self.synthesised:
            lines.append("features synthesised: these figures say nothing about vision")
        return "\n".join([*lines, f"({KNOWN_FIGURES})"])


def follow(
    agent: FollowerAgent,
    split: Split,
    decoder: Decoder = GREEDY,
    *,
    batch_size: int = 64,
    max_steps: int = 20,
) -> list[dict[str, Any]]:
    """Let an agent follow all instructions of a split; training mode and random state stay as they were.

    Args:
        agent: the follower.
        split: tasks and world.
        decoder: how actions are chosen.
        batch_size: episodes at once.
        max_steps: an episode ends then.

    Returns:
        A record per item in the official submission format.

    Raises:
        ConfigError: for unknown decoding.
    """
    decoder.check()
    # A generator of its own: drawing actions does not touch the random state of training.
    env, generator = split.env(agent.device), torch.Generator().manual_seed(decoder.seed)
    was_training = agent.training
    agent.eval()
    records: list[dict[str, Any]] = []
    try:
        with torch.no_grad():
            for first in range(0, len(split.items), batch_size):
                items = split.items[first : first + batch_size]
                if decoder.decoding == "beam":
                    best = beam_search(agent, env, items, width=decoder.beam_width, max_steps=max_steps)
                    records += [path.record() for path in best]
                else:
                    feedback: Literal["argmax", "sample"] = (
                        "sample" if decoder.decoding == "sample" else "argmax"
                    )
                    done = rollout(agent, env, items, feedback, max_steps=max_steps, generator=generator)
                    records += done.trajectories
    finally:
        agent.train(was_training)
    return records


def score_split(split: Split, trajectories: list[dict[str, Any]]) -> R2RScores:
    """Return the official scores of trajectories that are in the order of the items.

    Raises:
        DataError: for items without goal (the test split) and for impossible paths.
    """
    metrics = measure_paths(
        split.world,
        [item.scan for item in split.items],
        [[pose[0] for pose in record["trajectory"]] for record in trajectories],
        [item.path for item in split.items],
        [item.goals for item in split.items],
        names=[f"{split.name}: item {item.instr_id!r}" for item in split.items],
    )
    return R2RScores(*(float(values.mean()) for values in metrics))
