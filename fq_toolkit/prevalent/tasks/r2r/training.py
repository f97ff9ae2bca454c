"""The R2R trainer: imitation with scheduled sampling, actor-critic, more instructions, back-translation."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.prevalent.data.splits import Split, check_goals, check_split, split_parts
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.metrics.scoring import R2RScores
from fq_toolkit.prevalent.model.encoder import FOLDER, PrevalentModel
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.rollout import rollout
from fq_toolkit.prevalent.model.speaker import Speaker, retell
from fq_toolkit.prevalent.tasks.agents import build_agent, build_follower
from fq_toolkit.prevalent.tasks.another_split import shown_in
from fq_toolkit.prevalent.tasks.losses import a2c_loss, imitation_loss
from fq_toolkit.prevalent.tasks.navigator import FREE_ON_RESUME, NavigatorTask
from fq_toolkit.prevalent.tasks.r2r.config import MINI, TRAINER, R2RConfig
from fq_toolkit.prevalent.tasks.r2r.data import R2R, R2RData, ablations, load_r2r_data
from fq_toolkit.prevalent.tasks.r2r.evaluation import GREEDY, R2REvaluation, follow, score_split
from fq_toolkit.prevalent.text.length_limit import keep_start
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY, Vocabulary
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.paths import sample_paths
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer, make_accelerator
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult

EXPLORED_PATHS = 500


class Exploration(NamedTuple):
    """Back-translation: paths of a world to be explored before the test, and the speaker that describes them.

    Speaker and agent see the world through the same mask of environment dropout: both are in one building,
    which is another one than the features show.

    paths: without instructions.
    env: their world, with features.
    order: in which they are visited.
    speaker: in evaluation mode.

    Source: R2R-EnvDrop, arXiv 1904.04195, sections 3.4 and 5.2.
    """

    paths: Split
    env: BatchedNavEnv
    order: ShuffledIndices
    speaker: Speaker

    def tell(self, feature_mask: Tensor | None) -> list[NavItem]:
        """Return the next paths with the speaker's instructions."""
        with torch.no_grad():
            items = [self.paths.items[row] for row in self.order.next().tolist()]
            return retell(self.speaker, self.env, items, feature_mask=feature_mask)


class R2RTask(NavigatorTask):
    """A follower in training: imitation, actor-critic, augmented and back-translated instructions.

    Args:
        config: all options.
        data: the splits.
        accelerator: an ``accelerate.Accelerator``.
        agent: a follower; by default the one that the options describe.

    Source: PREVALENT, arXiv 2002.10638, section 5; R2R-EnvDrop, arXiv 1904.04195.
    """

    name = TRAINER
    dataset = R2R
    decoder = GREEDY
    loss_names = ("imitation", "a2c")
    score_names = ("SR", "SPL", "NE", "nDTW")

    def __init__(
        self, config: R2RConfig, data: R2RData, accelerator: Any, agent: FollowerAgent | None = None
    ) -> None:
        seed_everything(config.seed)
        self.config, self.selected_score = config, config.select_by
        if agent is None:
            texts = [item.instruction for item in data.train.items]
            agent = build_follower(config, texts, feature_dim=data.train.features.dim)
        super().__init__(config, data.train, data.validation, agent, accelerator)
        self.augmented = data.augmented
        if data.augmented is not None:
            more = data.augmented
            check_split(more)
            check_goals(more)
            self.cut[more.name] = agent.fit(more.items, source=more.source).cut
        self.other_order = None if data.augmented is None else self._order_of(data.augmented)
        self.exploration: Exploration | None = None
        if config.speaker is not None:
            paths = unlabelled_paths(config, data)
            speaker = Speaker.from_pretrained(config.speaker).to(accelerator.device).eval()
            if speaker.feature_dim != data.train.features.dim:
                raise ConfigError(
                    f"the speaker {config.speaker} was trained on features of width {speaker.feature_dim}, "
                    f"the agent sees {data.train.features.dim}: train one of them with the "
                    "other's --feature-dim"
                )
            self.exploration = Exploration(
                paths, paths.env(accelerator.device), self._order_of(paths), speaker
            )

    def _order_of(self, split: Split) -> ShuffledIndices:
        """Return the order in which the items of a second source are visited."""
        accelerator = self.accelerator
        return ShuffledIndices(
            len(split.items),
            min(self.config.batch_size, len(split.items)),
            seed=self.config.seed + 1,  # not that of the annotated items
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )

    def losses(self, items: list[NavItem], step: int, feature_mask: Tensor | None) -> dict[str, Tensor]:
        """Return imitation and actor-critic of a batch: annotated, augmented or back-translated."""
        config, env = self.config, self.env
        # Odd steps are for the second source, so that every other batch stays annotated.
        if step % 2 and self.exploration is not None and step >= config.explore_from * config.steps:
            told, env = self.exploration.tell(feature_mask), self.exploration.env
            # A speaker has its own vocabulary: what it says may be longer in the agent's tokens.
            limit, vocabulary = self.agent.max_tokens, self.agent.vocabulary
            items = [i._replace(instruction=keep_start(i.instruction, vocabulary, limit)) for i in told]
        elif step % 2 and self.augmented is not None and self.other_order is not None:
            items = [self.augmented.items[row] for row in self.other_order.next().tolist()]
        parts = {"imitation": imitation_loss(self.student_walk(env, items, step, feature_mask))}
        parts["a2c"] = parts["imitation"].new_zeros(())
        if config.a2c_weight and step >= config.a2c_from * config.steps:
            walk = rollout(
                self.agent, env, items, "sample", max_steps=config.max_steps, feature_mask=feature_mask
            )
            loss = a2c_loss(walk, gamma=config.gamma, entropy_weight=config.entropy_weight).loss
            parts["a2c"] = config.a2c_weight * loss
        return parts

    def predict(self, split: Split) -> list[dict[str, Any]]:
        """Let the agent follow all instructions of a split."""
        return follow(self.agent, split, self.decoder, max_steps=self.config.max_steps)

    def adopt(self, split: Split) -> Split:
        """Return a split with the ablations of the run applied."""
        for change in ablations(self.config):
            split = change(split)
        return super().adopt(split)

    def known_items(self, split: Split) -> list[NavItem]:
        """Return the items that were trained on, annotated or augmented."""
        more = [] if self.augmented is None else self.augmented.items
        training, texts = [*self.train.items, *more], self.config.data != MINI
        return shown_in(training, split.items, split.world, texts=texts)

    def score(self, split: Split, predictions: list[dict[str, Any]]) -> R2RScores:
        """Return the official scores."""
        return score_split(split, predictions)

    def report(self, scores: Mapping[str, Any], counts: Mapping[str, int]) -> R2REvaluation:
        """Return the scores and how actions were chosen."""
        return R2REvaluation(dict(scores), counts, self.train.synthesised, self.decoder.decoding)

    def more_figures(self, splits: Iterable[str]) -> dict[str, Any]:
        """Return how actions were chosen."""
        return {"decoding": self.decoder.decoding}

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write predictions, scores, and the model with its vocabulary."""
        self.agent.model.save_pretrained(run.path / FOLDER)
        self.agent.vocabulary.save(run.path / FOLDER / VOCABULARY)
        super().finish(run, result, complete=complete)

    def _other_orders(self) -> dict[str, ShuffledIndices]:
        """Return the orders of the second sources there are."""
        explored = None if self.exploration is None else self.exploration.order
        orders = {"augmented": self.other_order, "explored": explored}
        return {name: order for name, order in orders.items() if order is not None}

    def data_parts(self) -> list[Any]:
        """Return what tells the data apart that is trained on."""
        more = [] if self.augmented is None else split_parts(self.augmented)
        return [*super().data_parts(), *more]

    def extra_state(self) -> dict[str, Any]:
        """Return the place in the second sources."""
        return {"other_orders": {name: order.state_dict() for name, order in self._other_orders().items()}}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the place in the second sources."""
        for name, order in self._other_orders().items():
            order.load_state_dict(state["other_orders"][name])


def unlabelled_paths(config: R2RConfig, data: R2RData) -> Split:
    """Return sampled paths of the val_unseen world, without instructions: what may be explored.

    Raises:
        DataError: when there is no such split, or its world lies in the training world.
    """
    split = data.validation.get("val_unseen")
    if split is None:
        raise DataError("there is no val_unseen split to explore: leave out the option speaker")
    scans = sorted({item.scan for item in split.items})
    world = NavWorld(split.world.scan(name) for name in scans)
    items = [
        NavItem(f"explored_{number}", scan, 0.0, tuple(path), (path[-1],), "")
        for number, (scan, path) in enumerate(sample_paths(world, EXPLORED_PATHS, seed=config.seed))
    ]
    return split._replace(name="explored", items=items)


def fine_tune(
    config: R2RConfig | None = None,
    *,
    model: PrevalentModel | None = None,
    vocabulary: Vocabulary | None = None,
) -> dict[str, R2RScores]:
    """Train a follower without a run folder, and return its scores by validation split.

    Args:
        config: all options.
        model: to start from, changed by the training; by default the one that the options describe.
        vocabulary: of that model.

    Raises:
        ValueError: for a model without its vocabulary or the other way round.
        DataError: as `load_r2r_data`.
    """
    if (model is None) != (vocabulary is None):
        raise ValueError("give the model together with its vocabulary")
    config = config or R2RConfig()
    agent = None
    if model is not None and vocabulary is not None:
        seed_everything(config.seed)
        agent = build_agent(config, model, vocabulary)
    task = R2RTask(config, load_r2r_data(config), make_accelerator(config), agent)
    for step in range(config.steps):
        task.step(step)
    task.evaluate()
    return dict(task.last_evaluation.scores)


def run_name(config: R2RConfig) -> str:
    """Return the first part of a default folder name."""
    start = "pretrained" if config.pretrained else "scratch"
    return f"{TRAINER}-{Path(config.data).name}-{start}-seed{config.seed}"


R2R_TRAINER = Trainer(
    name=TRAINER,
    config_class=R2RConfig,
    build=lambda config, accelerator: R2RTask(config, load_r2r_data(config), accelerator),
    run_name=run_name,
    artifacts=("predictions-*.json", "model/", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME | {"long_instructions", "select_by"},  # data of equal bits, or an error
)
