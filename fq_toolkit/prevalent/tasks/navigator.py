"""What the trainers of R2R, NDH and HANNA share: an update, measuring, and the results of a run."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fq_toolkit.prevalent.data.predictions import save_predictions
from fq_toolkit.prevalent.data.splits import (
    Split,
    check_goals,
    check_split,
    fingerprint,
    split_parts,
)
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.rollout import Rollout, rollout
from fq_toolkit.prevalent.tasks.another_split import measured_set, shown_in
from fq_toolkit.prevalent.tasks.config import MINI, NavigatorConfig
from fq_toolkit.prevalent.tasks.loading import Dataset
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights

WARMUP = 0.05
"""Share of the steps over which the learning rates rise."""
_FIRST = 1e-3  # share of the run that the warm-up starts ahead, or the first update would change nothing
_TOGETHER = 64  # episodes at once in an evaluation
# The learning rates fall to 0 over the steps, so another number of steps is another run.
FREE_ON_RESUME = frozenset({"log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every"})


class Figures(Protocol):
    """Scores of one split: a NamedTuple of floats."""

    def _asdict(self) -> dict[str, float]: ...


class Trace(NamedTuple):
    """What an agent thought and did, T steps.

    log_probs: (T, B, A), -inf for padding.
    records: B records in the official submission format.
    heard: of each agent what it was told at each step, None where it did not ask; None where nobody can.
    """

    log_probs: Tensor
    records: list[dict[str, Any]]
    heard: list[list[str | None]] | None = None


class NavigatorTask(TrainingTask):
    """An agent in training. A subclass defines the losses, the scores and how they are reported.

    Args:
        config: all options.
        train: what is trained on.
        validation: split name -> what is measured.
        agent: a follower.
        extra: other networks that are trained with it, by name.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        DataError: naming file and item, for an instruction that is longer than the limit, items without goal,
            a split without items, and viewpoints without features.
    """

    trained_on = "the annotations, graphs, features or words"
    name = "navigator"
    side_cut = "cut at their end"
    id_field = "instr_id"
    loss_names: tuple[str, ...] = ("navigation",)
    score_names: tuple[str, ...] = ("SR", "SPL")
    selected_score: str = "SR"
    """Score that chooses the best checkpoint."""
    dataset: Dataset

    def __init__(
        self,
        config: NavigatorConfig,
        train: Split,
        validation: Mapping[str, Split],
        agent: FollowerAgent,
        accelerator: Any,
        extra: Mapping[str, nn.Module] | None = None,
    ) -> None:
        for split in (train, *validation.values()):
            check_split(split)
            check_goals(split)
        self.config, self.train, self.validation, self.accelerator = config, train, validation, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.networks = nn.ModuleDict({"agent": agent, **(extra or {})}).to(device)
        self.agent = agent
        self.env = train.env(device)  # kept: its tables are built once per building
        self.order = ShuffledIndices(
            len(train.items),
            min(config.batch_size, len(train.items)),  # a trial may have fewer items than a batch
            seed=config.seed,
            rank=rank,
            world=world,
        )
        # The pretrained part has its own, lower learning rate.
        encoder = {id(weight) for weight in agent.model.parameters()}
        parts = (
            ([w for w in self.networks.parameters() if id(w) not in encoder], config.lr),
            (list(agent.model.parameters()), config.encoder_lr),
        )
        optimizer = torch.optim.AdamW(
            [{"params": weights, "lr": lr} for weights, lr in parts], weight_decay=config.weight_decay
        )
        # Only the optimizer is prepared, for the scaler of fp16: the networks are called in pieces.
        self.optimizer = accelerator.prepare(optimizer)
        self.rates = [lr for _, lr in parts]
        self.predictions: dict[str, list[dict[str, Any]]] = {}
        measured = "val_unseen" if "val_unseen" in validation else next(iter(validation), None)
        if measured is not None:
            self.selection = Selection(f"{self.selected_score}/{measured}", highest=True)
        self.cut = {
            split.name: agent.fit(split.items, source=split.source).cut
            for split in (train, *validation.values())
        }
        seed_everything(rank_seed(config.seed, rank))  # other dropout and choices on every process

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what is trained on."""
        return fingerprint(self.data_parts())

    @abstractmethod
    def losses(self, items: list[NavItem], step: int, feature_mask: Tensor | None) -> dict[str, Tensor]:
        """Return the parts of the loss of a batch, by their names; their sum is minimized."""

    def student_walk(
        self, env: BatchedNavEnv, items: list[NavItem], step: int, feature_mask: Tensor | None
    ) -> Rollout:
        """Return a walk with gradients in which agent and teacher take turns: scheduled sampling."""
        return rollout(
            self.agent,
            env,
            items,
            "student",
            max_steps=self.config.max_steps,
            teacher_probability=self.teacher_probability(step),
            feature_mask=feature_mask,
        )

    def trace(self, split: Split, items: list[NavItem], *, alone: bool = False) -> Trace:
        """Let the agent do some items of a split greedily; ``alone`` forbids asking, where there is help."""
        env = self.env if split is self.train else split.env(self.agent.device)
        done = rollout(self.agent, env, items, "argmax", max_steps=self.config.max_steps)
        return Trace(done.log_probs, done.trajectories)

    def records(self, split: Split, *, alone: bool = False) -> list[dict[str, Any]]:
        """Let the agent do all items of a split greedily; records in the official submission format."""
        records = []
        for start in range(0, len(split.items), _TOGETHER):
            records += self.trace(split, split.items[start : start + _TOGETHER], alone=alone).records
        return records

    def predict(self, split: Split) -> list[dict[str, Any]]:
        """Return what is submitted for a split."""
        return self.records(split)

    def adopt(self, split: Split) -> Split:
        """Return a split that the agent was not built with, made ready for it.

        Long instructions are cut and counted, whatever the run did with those it was trained on: a submission
        needs all items.

        Raises:
            DataError: for a split without items, or viewpoints without features.
        """
        check_split(split)
        self.agent.long_instructions = "cut"
        self.cut[split.name] = self.agent.fit(split.items, source=split.source).cut
        return split

    def known_items(self, split: Split) -> list[NavItem]:
        """Return the items of a split whose path or words were trained on."""
        return shown_in(self.train.items, split.items, split.world, texts=self.config.data != MINI)

    @abstractmethod
    def score(self, split: Split, predictions: list[dict[str, Any]]) -> Figures:
        """Return the official scores of predictions that are in the order of the items."""

    def teacher_probability(self, step: int) -> float:
        """Return the share of steps in which the teacher acts; it changes linearly over the run."""
        config = self.config
        done = step / max(1, config.steps - 1)
        return config.teacher_start + (config.teacher_end - config.teacher_start) * min(1.0, done)

    def rate_factor(self, step: int) -> float:
        """Return the factor on the learning rates: linear warm-up, and linear decay to 0 over the run."""
        done = step / self.config.steps
        return min(1.0, (done + _FIRST) / WARMUP) * (1 - done)

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update on a batch of items."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate_factor(step)
        config, rows = self.config, self.order.next().tolist()
        mask = None
        if config.feature_dropout:
            mask = draw_feature_mask(
                self.agent.feature_dim, config.feature_dropout, device=self.accelerator.device
            )
        self.networks.train()
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            parts = self.losses([self.train.items[row] for row in rows], step, mask)
        self.accelerator.backward(torch.stack(list(parts.values())).sum())
        # DDP expects one forward per backward; a walk calls the agent at every step, so gradients are
        # averaged by hand.
        if self.accelerator.num_processes > 1:
            for weight in self.networks.parameters():
                if weight.grad is not None:
                    weight.grad = self.accelerator.reduce(weight.grad, reduction="mean")
        self.accelerator.clip_grad_norm_(self.networks.parameters(), config.clip)
        self.optimizer.step()
        return {f"loss/{name}": value.detach() for name, value in parts.items()}

    def summary(self) -> str:
        """Return one line: data, network, device."""
        counts = ", ".join(f"{len(s.items)} {s.name}" for s in (self.train, *self.validation.values()))
        noise = " (features synthesised)" if self.train.synthesised else ""
        size = count_weights(self.networks)
        start = f"pretrained by {self.config.pretrained}" if self.config.pretrained else "from scratch"
        return (
            f"items: {counts}{noise}{self.lost()}; agent of {size:,} weights, {start}, "
            f"{len(self.agent.vocabulary)} words; {self.accelerator.device}"
        )

    def lost(self) -> str:
        """Return how many instructions of each split were cut, as a part of a line; nothing without any."""
        counts = ", ".join(f"{count} {name}" for name, count in self.cut.items() if count)
        return f", {self.side_cut} to {self.agent.max_tokens} tokens: {counts}" if counts else ""

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        losses = [f"loss/{name}" for name in self.loss_names]
        return [
            "seconds",
            *losses,
            *(f"{score}/{split}" for split in self.validation for score in self.score_names),
        ]

    def measured_parts(self, split: Split) -> list[Any]:
        """Return what decides the scores of a split beside the agent: items, places, and who helps."""
        return split_parts(split)

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the validation splits."""
        return {
            name: measured_set(split, self.measured_parts(split)) for name, split in self.validation.items()
        }

    def measure(self) -> dict[str, Figures]:
        """Return the scores of each validation split; weights, modes and random state stay as they were."""
        self.networks.eval()  # step() turns training mode on again
        with isolated_rng(0), torch.no_grad():
            self.predictions = {name: self.predict(split) for name, split in self.validation.items()}
        return {name: self.score(split, self.predictions[name]) for name, split in self.validation.items()}

    def evaluate(self) -> dict[str, float]:
        """Measure, and return the columns."""
        scores = self.measure()
        counts = {name: len(split.items) for name, split in self.validation.items()}
        self.last_evaluation = self.report(scores, counts)
        return {
            f"{score}/{name}": figures._asdict()[score]
            for name, figures in scores.items()
            for score in self.score_names
        }

    @abstractmethod
    def report(self, scores: Mapping[str, Figures], counts: Mapping[str, int]) -> Any:
        """Return the scores of splits with their numbers of items, as an object whose ``str`` is printed."""

    def more_figures(self, splits: Iterable[str]) -> dict[str, Any]:
        """Return what else an evaluation file says of some splits; JSON values."""
        return {}

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write predictions in the submission format and, when complete, ``evaluation.json``."""
        if complete and self.last_evaluation is not None:
            self.write_results(run, step=result.step, seconds=result.seconds)

    def write_results(self, run: RunFolder, *, step: int, seconds: float, **more: Any) -> None:
        """Write ``predictions-SPLIT.json`` and ``evaluation.json``.

        Args:
            run: its folder.
            step: of the checkpoint that was measured.
            seconds: of training up to it.
            more: further entries; JSON values.
        """
        for name, records in self.predictions.items():
            save_predictions(run.path / f"predictions-{name}.json", records, id_field=self.id_field)
        figures = {
            **more,
            "scores": {name: figures._asdict() for name, figures in self.last_evaluation.scores.items()},
            **self.more_figures(self.validation),
            "items": {name: len(split.items) for name, split in self.validation.items()},
            "instructions_cut": self.cut,
            "features_synthesised": self.train.synthesised,
            "world_seed": self.config.world_seed,
        }
        write_evaluation(
            run.evaluation,
            figures,
            step=step,
            seconds=seconds,
            measured_on=self.measured_on(),
            seed=self.config.seed,
        )

    def data_parts(self) -> list[Any]:
        """Return what tells the data apart that is trained on."""
        return [self.agent.vocabulary.tokens, *split_parts(self.train)]

    def modules(self) -> dict[str, Any]:
        """Return all networks as one."""
        return {"networks": self.networks}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the items."""
        return {"order": self.order}
