"""The HANNA trainer: imitation of a teacher that walks and of one that asks, and curiosity."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.prevalent.data.splits import Split, check_split
from fq_toolkit.prevalent.metrics.scoring import HannaScores, hanna_scores
from fq_toolkit.prevalent.tasks.agents import build_follower
from fq_toolkit.prevalent.tasks.another_split import shown_in
from fq_toolkit.prevalent.tasks.hanna.config import TRAINER, HannaConfig
from fq_toolkit.prevalent.tasks.hanna.data import HANNA, HannaData, helper_in, load_hanna_data
from fq_toolkit.prevalent.tasks.hanna.help import RouteHelper
from fq_toolkit.prevalent.tasks.hanna.walk import AskModule, Walk, walk
from fq_toolkit.prevalent.tasks.navigator import FREE_ON_RESUME, NavigatorTask, Trace
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer

KNOWN_FIGURES = "published, HANNA: SPL 28.72 (public listing)"


class HannaEvaluation(NamedTuple):
    """Scores by split, and those of the same agent when it may not ask."""

    scores: Mapping[str, HannaScores]
    without_help: Mapping[str, HannaScores]
    counts: Mapping[str, int]
    synthesised: bool

    def __str__(self) -> str:
        lines = []
        for name, scores in self.scores.items():
            alone = self.without_help[name]
            lines.append(
                f"{name} ({self.counts[name]} tasks): "
                f"SR {100 * scores.SR:.1f} %  SPL {100 * scores.SPL:.1f} %  NE {scores.NE:.2f} m  "
                f"{scores.requests:.2f} requests for help; without help "
                f"SR {100 * alone.SR:.1f} %  SPL {100 * alone.SPL:.1f} %"
            )
        if self.synthesised:
            lines.append("features synthesised: these figures say nothing about vision")
        return "\n".join([*lines, f"({KNOWN_FIGURES})"])


def navigation_loss(done: Walk) -> Tensor:
    """Return the mean cross-entropy of the teacher's actions, 0-dim, as `imitation_loss` of other agents."""
    wanted = done.teacher.masked_fill(~done.active, -1)
    total = F.nll_loss(done.log_probs.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum")
    return total / (wanted >= 0).sum().clamp(min=1)


def ask_loss(done: Walk) -> Tensor:
    """Return the mean cross-entropy of deciding to ask, 0-dim, over the steps in which an agent may ask."""
    wanted = done.ask_teacher.long().masked_fill(~done.may_ask, -1)
    total = F.cross_entropy(
        done.ask_scores.flatten(0, 1).float(), wanted.flatten(), ignore_index=-1, reduction="sum"
    )
    return total / done.may_ask.sum().clamp(min=1)


def curiosity_loss(done: Walk) -> Tensor:
    r"""Return the loss of repeated mistakes, 0-dim.

    .. math:: L = -\frac{1}{M} \sum_{a \in M} \log(1 - p(a)),

    over the M actions that the agent took at the same place before and that were wrong: whoever comes back
    should try something else.

    Source: curiosity-encouraging training of HANNA, arXiv 1909.01871, section 6.
    """
    again = done.mistakes & done.active[..., None] & (done.log_probs > -torch.inf)
    probabilities = done.log_probs.masked_fill(~again, -torch.inf).exp()
    # Clamped, because a certain mistake would cost infinitely much.
    return -torch.log1p(-probabilities.clamp(max=1 - 1e-6)).sum() / again.sum().clamp(min=1)


class HannaTask(NavigatorTask):
    """An agent that learns to find things and to ask for help.

    Args:
        config: all options.
        data: the splits and who helps in them.
        accelerator: an ``accelerate.Accelerator``.

    Source: HANNA, arXiv 1909.01871; PREVALENT, arXiv 2002.10638, section 5.
    """

    name = TRAINER
    dataset = HANNA
    loss_names = ("navigation", "ask", "curiosity")
    score_names = ("SR", "SPL", "NE", "requests")

    def __init__(self, config: HannaConfig, data: HannaData, accelerator: Any) -> None:
        seed_everything(config.seed)
        check_split(data.train)
        texts = [item.instruction for item in data.train.items]
        # What is read after help has tags and words of its own; the vocabulary must know them from the start.
        spoken = [f"<ORA> {text} <TAR> {texts[0]}" for text in data.texts]
        agent = build_follower(config, [*texts, *spoken], feature_dim=data.train.features.dim)
        self.asker = AskModule(config.hidden_size)
        self.helpers, self.config = dict(data.helpers), config
        self.without_help: dict[str, HannaScores] = {}
        super().__init__(config, data.train, data.validation, agent, accelerator, extra={"asker": self.asker})

    def _walk(self, split: Split, items: list[NavItem], max_requests: int, **options: Any) -> Walk:
        env = self.env if split is self.train else split.env(self.agent.device)
        return walk(
            self.agent,
            self.asker,
            env,
            items,
            self.helpers[split.name],
            max_steps=self.config.max_steps,
            max_requests=max_requests,
            uncertain=self.config.uncertain,
            **options,
        )

    def losses(self, items: list[NavItem], step: int, feature_mask: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of both modules along a walk in which teachers and agent take turns."""
        done = self._walk(
            self.train,
            items,
            self.config.max_requests,
            feedback="student",
            teacher_probability=self.teacher_probability(step),
            feature_mask=feature_mask,
        )
        return {
            "navigation": navigation_loss(done),
            "ask": self.config.ask_weight * ask_loss(done),
            "curiosity": self.config.curiosity * curiosity_loss(done),
        }

    def trace(self, split: Split, items: list[NavItem], *, alone: bool = False) -> Trace:
        """Let the agent do some requests greedily, with help unless ``alone``."""
        done = self._walk(split, items, 0 if alone else self.config.max_requests)
        return Trace(done.log_probs, done.records, done.heard)

    def adopt(self, split: Split) -> Split:
        """Return a split with somebody who helps in it: the same routes, or who knows the world."""
        helper = self.helpers["train"]
        routes = helper.items if isinstance(helper, RouteHelper) else ()
        self.helpers[split.name] = helper_in(split.world, routes)
        return super().adopt(split)

    def known_items(self, split: Split) -> list[NavItem]:
        """Return the requests whose path was trained on; their words are anybody's."""
        return shown_in(self.train.items, split.items, split.world, texts=False)

    def predict(self, split: Split) -> list[dict[str, Any]]:
        """Let the agent do all requests greedily, and a second time without help."""
        # The same agent without help shows what asking is worth.
        self.without_help[split.name] = self.score(split, self.records(split, alone=True))
        return self.records(split)

    def measured_parts(self, split: Split) -> list[Any]:
        """Return what decides the scores of a split, the routes of who helps in it among it."""
        helper, scans = self.helpers[split.name], {item.scan for item in split.items}
        # What a MiniHelper says follows from the world, which is among the parts already.
        routes = helper.routes if isinstance(helper, RouteHelper) else {}
        told = sorted((place, rows) for place, rows in routes.items() if place[0] in scans)
        return [*super().measured_parts(split), told]

    def score(self, split: Split, predictions: list[dict[str, Any]]) -> HannaScores:
        """Return the official scores."""
        records = [{**r, "path": [pose[0] for pose in r["trajectory"]]} for r in predictions]
        return hanna_scores(split.items, records, split.world, annotations=split.name)

    def report(self, scores: Mapping[str, Any], counts: Mapping[str, int]) -> HannaEvaluation:
        """Return the scores with and without help."""
        return HannaEvaluation(scores, dict(self.without_help), counts, self.train.synthesised)

    def more_figures(self, splits: Iterable[str]) -> dict[str, Any]:
        """Return the scores without help."""
        return {"scores_without_help": {name: self.without_help[name]._asdict() for name in splits}}


HANNA_TRAINER = Trainer(
    name=TRAINER,
    config_class=HannaConfig,
    build=lambda config, accelerator: HannaTask(config, load_hanna_data(config), accelerator),
    run_name=lambda config: f"{TRAINER}-{config.preset}-seed{config.seed}",
    artifacts=("predictions-*.json", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME | {"long_instructions"},  # data of equal bits, or an error
)
