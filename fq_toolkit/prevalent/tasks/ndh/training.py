"""The NDH trainer: imitation with scheduled sampling on dialog history; measured by goal progress."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.metrics.scoring import NDHScores, ndh_scores
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.tasks.agents import build_follower
from fq_toolkit.prevalent.tasks.losses import imitation_loss
from fq_toolkit.prevalent.tasks.navigator import FREE_ON_RESUME, NavigatorTask
from fq_toolkit.prevalent.tasks.ndh.config import TRAINER, NDHConfig
from fq_toolkit.prevalent.tasks.ndh.data import (
    NDHData,
    load_ndh_data,
    ndh_dataset,
    planner_goals,
    shown_turns,
)
from fq_toolkit.prevalent.text.length_limit import keep_end
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer


class NDHEvaluation(NamedTuple):
    """Scores by split."""

    scores: Mapping[str, NDHScores]
    counts: Mapping[str, int]
    target: str
    synthesised: bool

    def __str__(self) -> str:
        lines = [
            f"{name} ({self.counts[name]} dialog turns, target {self.target}): goal progress "
            f"{scores.GP:.2f} m  SR {100 * scores.SR:.1f} %  SPL {100 * scores.SPL:.1f} %  "
            f"NE {scores.NE:.2f} m  OPSR {100 * scores.OPSR:.1f} %"
            for name, scores in self.scores.items()
        ]
        if self.synthesised:
            lines.append("features synthesised: these figures say nothing about vision")
        return "\n".join(lines)


class NDHTask(NavigatorTask):
    """An agent that learns to go on from a dialog.

    Args:
        config: all options.
        data: the splits.
        accelerator: an ``accelerate.Accelerator``.

    Source: CVDN, arXiv 1907.04957; PREVALENT, arXiv 2002.10638, section 5.
    """

    name = TRAINER
    id_field = "inst_idx"
    selected_score = "GP"
    score_names = ("GP", "SR", "SPL", "OPSR")
    side_cut = "oldest words of dialogs cut"

    def __init__(self, config: NDHConfig, data: NDHData, accelerator: Any) -> None:
        seed_everything(config.seed)
        agent = build_follower(
            config,
            [item.instruction for item in data.train.items],
            feature_dim=data.train.features.dim,
        )
        # Cut before the base class fits the texts, which would count or refuse what is too long.
        train = cut_dialogs(data.train, agent)
        validation = {name: cut_dialogs(split, agent) for name, split in data.validation.items()}
        self.dataset = ndh_dataset(config)
        super().__init__(
            config, train.split, {name: part.split for name, part in validation.items()}, agent, accelerator
        )
        self.cut = {data.train.name: train.cut, **{name: part.cut for name, part in validation.items()}}
        self.planner, self.target = dict(data.planner), config.target

    def losses(self, items: list[NavItem], step: int, feature_mask: Tensor | None) -> dict[str, Tensor]:
        """Return the cross-entropy of the teacher's actions along a walk that both take turns in."""
        walk = self.student_walk(self.env, items, step, feature_mask)
        return {"navigation": imitation_loss(walk)}

    def adopt(self, split: Split) -> Split:
        """Return a split with the oldest words cut, and note where the planner's paths end if it says so."""
        cut = cut_dialogs(super().adopt(split), self.agent)
        self.cut[split.name] = cut.cut
        # A test split has no planner's path, and without goals there is no score that would need it.
        goals = planner_goals(split) if all(item.goals for item in split.items) else {}
        self.planner[split.name] = goals
        return cut.split

    def known_items(self, split: Split) -> list[NavItem]:
        """Return the dialog turns that were trained on."""
        return shown_turns(self.train.items, split.items, split.world)

    def measured_parts(self, split: Split) -> list[Any]:
        """Return what decides the scores of a split, the planner's goals among it."""
        planner = self.planner[split.name]
        return [*super().measured_parts(split), [planner.get(item.instr_id) for item in split.items]]

    def score(self, split: Split, predictions: list[dict[str, Any]]) -> NDHScores:
        """Return the official scores."""
        records = [{**r, "path": [pose[0] for pose in r["trajectory"]]} for r in predictions]
        return ndh_scores(split.items, records, split.world, self.planner[split.name], annotations=split.name)

    def report(self, scores: Mapping[str, Any], counts: Mapping[str, int]) -> NDHEvaluation:
        """Return the scores and whose path they are measured against."""
        return NDHEvaluation(scores, counts, self.target, self.train.synthesised)


class CutSplit(NamedTuple):
    """A split with dialogs that an agent can read, and how many of them lost their oldest words."""

    split: Split
    cut: int


def cut_dialogs(split: Split, agent: FollowerAgent) -> CutSplit:
    """Return a split whose dialogs an agent can read: the oldest words, on the left, go."""
    items = [
        item._replace(instruction=keep_end(item.instruction, agent.vocabulary, agent.max_tokens))
        for item in split.items
    ]
    cut = sum(
        len(new.instruction.split()) < len(old.instruction.split())
        for new, old in zip(items, split.items, strict=True)
    )
    return CutSplit(split._replace(items=items), cut)


NDH_TRAINER = Trainer(
    name=TRAINER,
    config_class=NDHConfig,
    build=lambda config, accelerator: NDHTask(config, load_ndh_data(config), accelerator),
    run_name=lambda config: f"{TRAINER}-{config.preset}-{config.target}-seed{config.seed}",
    artifacts=("predictions-*.json", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME,
)
