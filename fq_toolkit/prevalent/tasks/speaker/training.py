"""The speaker's trainer: teacher forcing; the checkpoint with the best BLEU becomes ``speaker/``."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.prevalent.data.splits import Split, check_split, fingerprint, split_parts
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.speaker import MOST_STEPS, Speaker, retell
from fq_toolkit.prevalent.tasks.another_split import measured_set
from fq_toolkit.prevalent.tasks.r2r.data import R2RData, load_r2r_data
from fq_toolkit.prevalent.tasks.speaker.config import TRAINER, SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.evaluation import SpeakerEvaluation, bleu, tell
from fq_toolkit.prevalent.text.length_limit import fit_items
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask
from fq_toolkit.prevalent.world.path_views import observe_paths, path_actions
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.session import FREE_ON_RESUME, Trainer
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights

SHOWN_PATHS = 20


class SpeakerTask(TrainingTask):
    """A speaker in training: the task that the loop drives.

    Args:
        config: all options.
        data: the splits; only ``train`` is trained on.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        DataError: naming file and item, for an instruction to train on that is longer than the limit, paths
            over a non-edge or of too many steps, a split without items, and viewpoints without features.
    """

    trained_on = "the annotations, graphs, features or words"
    last_evaluation: SpeakerEvaluation | None = None

    def __init__(self, config: SpeakerConfig, data: R2RData, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        items = data.train.items
        for split in (data.train, *data.validation.values()):
            check_split(split)
            check_ways(split)
        seed_everything(config.seed)
        # Of the training instructions only: a speaker says no word that it did not learn.
        vocabulary = Vocabulary.train(item.instruction for item in items)
        self.speaker = Speaker(
            vocabulary,
            feature_dim=data.train.features.dim,
            hidden_size=config.hidden_size,
            word_size=config.word_size,
            dropout=config.dropout,
        ).to(device)
        self.env = data.train.env(device)
        fitted = fit_items(
            items,
            vocabulary,
            source=data.train.source,
            limit=config.token_limit,
            long_instructions=config.long_instructions,
        )
        self.tokens, self.cut = torch.tensor(vocabulary.frame(fitted.encodings)).to(device), fitted.cut
        self.order = ShuffledIndices(
            len(items), min(config.batch_size, len(items)), seed=config.seed, rank=rank, world=world
        )
        self.optimizer = torch.optim.AdamW(
            self.speaker.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.wrapped, self.optimizer = accelerator.prepare(self.speaker, self.optimizer)
        # Without validation there is nothing to choose by, and the newest weights count.
        if data.validation:
            self.selection = Selection(f"BLEU/{selecting_split(data)}", highest=True)
        self.inherited: Kept | None = None
        seed_everything(rank_seed(config.seed, rank))

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what is trained on."""
        return fingerprint([self.speaker.vocabulary.tokens, *split_parts(self.data.train)])

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update: teacher forcing on a batch of paths under one mask of environment dropout."""
        config, rows = self.config, self.order.next()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        mask = None  # one mask for the batch: every path of it lies in the same altered building
        if config.feature_dropout:
            mask = draw_feature_mask(
                self.speaker.feature_dim, config.feature_dropout, device=self.accelerator.device
            )
        paths = observe_paths(
            self.env, [self.data.train.items[row] for row in rows.tolist()], feature_mask=mask
        )
        tokens = self.tokens[rows.to(self.tokens.device)]
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            loss = self.speaker.loss(self.wrapped(paths, tokens), tokens)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.speaker.parameters(), config.clip)
        self.optimizer.step()
        return {"loss/words": loss.detach()}

    def summary(self) -> str:
        """Return one line: data, network, device."""
        splits = [self.data.train, *self.data.validation.values()]
        counts = ", ".join(f"{len(split.items)} {split.name}" for split in splits)
        noise = " (features synthesised)" if self.data.train.synthesised else ""
        lost = f", cut at their end to {self.config.token_limit} tokens: {self.cut} train" if self.cut else ""
        size = count_weights(self.speaker)
        return (
            f"instructions: {counts}{noise}{lost}; speaker of {size:,} weights, "
            f"{len(self.speaker.vocabulary)} words; {self.accelerator.device}"
        )

    def gauges(self) -> dict[str, float]:
        """Return the learning rate."""
        return {"lr/speaker": float(self.optimizer.param_groups[0]["lr"])}

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        return ["seconds", "loss/words", "lr/speaker", *(f"BLEU/{name}" for name in self.data.validation)]

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the validation splits."""
        return measured_splits(self.data)

    def measure(self, speaker: Speaker) -> dict[str, float]:
        """Return the BLEU of a speaker on each validation split; the random state stays as it was."""
        with isolated_rng(0):
            return {name: bleu(tell(speaker, split)) for name, split in self.data.validation.items()}

    def evaluate(self) -> dict[str, float]:
        """Measure; the loop keeps the checkpoint if its BLEU is the best so far."""
        scores = self.measure(self.speaker)
        self.last_evaluation = self._report(scores, 0)
        return {f"BLEU/{name}": score for name, score in scores.items()}

    def _report(self, scores: Mapping[str, float], step: int) -> SpeakerEvaluation:
        counts = {
            name: len({(item.scan, item.path) for item in split.items})
            for name, split in self.data.validation.items()
        }
        return SpeakerEvaluation(
            scores, counts, selecting_split(self.data), step, self.data.train.synthesised
        )

    def best(self, run: RunFolder) -> "Kept | None":
        """Return the best weights of a run, or None before its first evaluation.

        They are those of the best checkpoint, unless the state of an older version carries better ones.
        """
        best = run.checkpoints().best()
        kept = self.inherited
        if best is None or (kept is not None and kept.value > best.value):
            return kept
        return Kept(best.step, best.value, run.load_checkpoint(best.step).state["task"]["speaker"])

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``speaker/``, ``instructions.txt`` and, when complete, ``evaluation.json``."""
        # A copy: the weights of the task stay those of the newest step.
        speaker, best = copy.deepcopy(self.speaker), self.best(run)
        if best is not None:
            speaker.load_state_dict(best.weights)
        speaker.eval()
        speaker.save_pretrained(run.path / "speaker")
        write_atomic(run.path / "instructions.txt", self._examples(speaker).encode())
        if complete and self.data.validation:
            step = result.step if best is None else best.step
            self.last_evaluation = self._report(self.measure(speaker), step)
            write_speaker_evaluation(
                run,
                self.config,
                self.last_evaluation,
                seconds=result.seconds,
                measured_on=self.measured_on(),
                instructions_cut={"train": self.cut},
            )

    def _examples(self, speaker: Speaker) -> str:
        """Return what a speaker says of some held-out paths, beside what people said."""
        lines = []
        for name, split in self.data.validation.items():
            env, items = split.env(speaker.device), split.items[:SHOWN_PATHS]
            for item, told in zip(items, retell(speaker, env, items), strict=True):
                lines += [
                    f"{name} {item.instr_id}",
                    f"  says: {told.instruction}",
                    f"  read: {item.instruction}",
                ]
        return "\n".join(lines) + "\n"

    def modules(self) -> dict[str, Any]:
        """Return the speaker."""
        return {"speaker": self.speaker}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the paths."""
        return {"order": self.order}

    def extra_state(self) -> dict[str, Any]:
        """Return the best weights that the state of an older version carried, so that they are not lost."""
        if self.inherited is None:
            return {}
        step, value, weights = self.inherited
        return {"best": {"step": step, "scores": {selecting_split(self.data): value}, "weights": weights}}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        best = state.get("best")
        if best is not None:
            value = float(best["scores"].get(selecting_split(self.data), 0.0))
            self.inherited = Kept(int(best["step"]), value, best["weights"])


class Kept(NamedTuple):
    """The best weights so far.

    step: updates after which they were taken.
    value: the BLEU that chose them.
    weights: of the speaker.
    """

    step: int
    value: float
    weights: dict[str, Tensor]


def selecting_split(data: R2RData) -> str:
    """Return the split whose BLEU chooses the best checkpoint; nothing without validation."""
    return "val_unseen" if "val_unseen" in data.validation else next(iter(data.validation), "")


def check_ways(split: Split) -> None:
    """Check that a speaker can describe every annotated path: along edges, and of at most 100 steps.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        try:
            steps = len(path_actions(split.world, item))
        except DataError as error:
            raise DataError(f"{split.source}: {error}") from error
        if steps > MOST_STEPS:
            raise DataError(
                f"{split.source}: item {item.instr_id!r} has {steps} steps; the speaker describes at most "
                f"{MOST_STEPS}: leave it out"
            )


def measured_splits(data: R2RData) -> dict[str, MeasuredSet]:
    """Return the validation splits as what a speaker is measured on."""
    return {name: measured_set(split) for name, split in data.validation.items()}


def write_speaker_evaluation(
    run: RunFolder,
    config: SpeakerConfig,
    evaluation: SpeakerEvaluation,
    *,
    seconds: float,
    measured_on: Mapping[str, MeasuredSet],
    **more: Any,
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    figures = {
        "bleu": dict(evaluation.bleu),
        "paths": dict(evaluation.counts),
        "selected_by": evaluation.selected_by,
        "features_synthesised": evaluation.synthesised,
        **more,
        "world_seed": config.world_seed,
    }
    write_evaluation(
        run.evaluation,
        figures,
        step=evaluation.kept_step,
        seconds=seconds,
        measured_on=measured_on,
        seed=config.seed,
    )


def _build(config: SpeakerConfig, accelerator: Any) -> SpeakerTask:
    return SpeakerTask(config, load_r2r_data(config.data_options()), accelerator)


SPEAKER_TRAINER = Trainer(
    name=TRAINER,
    config_class=SpeakerConfig,
    build=_build,
    run_name=lambda config: f"{TRAINER}-{config.preset}-seed{config.seed}",
    artifacts=("instructions.txt", "speaker/", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME | {"long_instructions"},  # data of equal bits, or an error
)
