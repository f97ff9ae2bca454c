"""The speaker's trainer: teacher forcing, and the weights of the evaluation with the best BLEU are kept."""

import copy
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.prevalent.data.splits import Split, check_split, fingerprint, split_parts
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.speaker import MOST_STEPS, Speaker, retell
from fq_toolkit.prevalent.tasks.r2r.data import R2RData, load_r2r_data
from fq_toolkit.prevalent.tasks.speaker.config import TRAINER, SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.evaluation import SpeakerEvaluation, bleu, tell
from fq_toolkit.prevalent.text.length_limit import fit_items
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask
from fq_toolkit.prevalent.world.path_views import observe_paths, path_actions
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.session import FREE_ON_RESUME, Trainer
from fq_toolkit.training.storage.atomic import write_atomic
from fq_toolkit.training.storage.evaluation import provenance
from fq_toolkit.training.storage.measured_data import KEY as MEASURED
from fq_toolkit.training.storage.measured_data import MeasuredSet, set_records
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

SHOWN_PATHS = 20


class SpeakerTraining(TrainingTask):
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
        self.selected_by = (
            "val_unseen" if "val_unseen" in data.validation else next(iter(data.validation), "")
        )
        self.best: dict[str, Any] | None = None
        self.done = self.judged = 0
        seed_everything(rank_seed(config.seed, rank))

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what is trained on."""
        return fingerprint([self.speaker.vocabulary.tokens, *split_parts(self.data.train)])

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update on a batch of paths under one mask of environment dropout."""
        every = self.config.evaluate_every
        if every and step % every == 0 and self.judged < step:
            self.evaluate()  # a run that was stopped at an evaluation makes up for it
        config, rows = self.config, self.order.next()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        mask = None
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
        self.done = step + 1
        return {"loss/words": loss.detach()}

    def summary(self) -> str:
        """Return one line: data, network, device."""
        splits = [self.data.train, *self.data.validation.values()]
        counts = ", ".join(f"{len(split.items)} {split.name}" for split in splits)
        noise = " (features synthesised)" if self.data.train.synthesised else ""
        lost = f", cut at their end to {self.config.token_limit} tokens: {self.cut} train" if self.cut else ""
        size = sum(weight.numel() for weight in self.speaker.parameters())
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

    def measure(self) -> dict[str, float]:
        """Return the BLEU of each validation split; the random state stays as it was."""
        with isolated_rng(0):
            return {name: bleu(tell(self.speaker, split)) for name, split in self.data.validation.items()}

    def evaluate(self) -> dict[str, float]:
        """Measure, and keep the weights if they are the best so far."""
        scores = self.measure()
        self.judged = self.done
        if self.best is None or scores.get(self.selected_by, 0.0) >= self.best["scores"].get(
            self.selected_by, 0.0
        ):
            weights = copy.deepcopy({k: v.detach().cpu() for k, v in self.speaker.state_dict().items()})
            self.best = {"scores": scores, "step": self.judged, "weights": weights}
        self.last_evaluation = self._evaluation()
        return {f"BLEU/{name}": score for name, score in scores.items()}

    def _evaluation(self) -> SpeakerEvaluation:
        best = self.best or {"scores": {}, "step": 0}
        env, counts = self.data.validation, {}
        for name, split in env.items():
            counts[name] = len({(item.scan, item.path) for item in split.items})
        return SpeakerEvaluation(
            best["scores"], counts, self.selected_by, best["step"], self.data.train.synthesised
        )

    def best_speaker(self) -> Speaker:
        """Return a copy of the speaker with the kept weights, or with the newest before any evaluation."""
        speaker = copy.deepcopy(self.speaker)
        if self.best is not None:
            speaker.load_state_dict(self.best["weights"])
        return speaker.eval()

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``speaker/``, ``instructions.txt`` and, when complete, ``evaluation.json``."""
        speaker = self.best_speaker()
        speaker.save_pretrained(run.path / "speaker")
        lines = []
        for name, split in self.data.validation.items():
            env, items = split.env(speaker.device), split.items[:SHOWN_PATHS]
            for item, told in zip(items, retell(speaker, env, items), strict=True):
                lines += [
                    f"{name} {item.instr_id}",
                    f"  says: {told.instruction}",
                    f"  read: {item.instruction}",
                ]
        write_atomic(run.path / "instructions.txt", ("\n".join(lines) + "\n").encode())
        if complete and self.last_evaluation is not None:
            write_speaker_evaluation(
                run,
                self.config,
                self.last_evaluation,
                result,
                instructions_cut={"train": self.cut},
                measured_on=self.measured_on(),
            )

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
        """Return the best so far."""
        return {"best": self.best, "done": self.done, "judged": self.judged}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the best so far."""
        self.best, self.done, self.judged = state["best"], state["done"], state["judged"]


def check_ways(split: Split) -> None:
    """Check that a speaker can describe every annotated path: neighbours all along, and not too many.

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
    return {
        name: MeasuredSet(split.source, fingerprint(split_parts(split)), len(split.items))
        for name, split in data.validation.items()
    }


def write_speaker_evaluation(
    run: RunFolder,
    config: SpeakerConfig,
    evaluation: SpeakerEvaluation,
    result: LoopResult | None,
    *,
    measured_on: Mapping[str, MeasuredSet],
    **more: Any,
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    record: dict[str, Any] = {
        "bleu": dict(evaluation.bleu),
        "paths": dict(evaluation.counts),
        "selected_by": evaluation.selected_by,
        "step": evaluation.kept_step,
        "features_synthesised": evaluation.synthesised,
        MEASURED: set_records(measured_on),
        **more,
        "seed": config.seed,
        "world_seed": config.world_seed,
        **provenance(),
    }
    if result is not None:
        record["training_seconds"] = round(result.seconds, 1)
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())


def _build(config: SpeakerConfig, accelerator: Any) -> SpeakerTraining:
    return SpeakerTraining(config, load_r2r_data(config.data_options()), accelerator)


SPEAKER_TRAINER = Trainer(
    name=TRAINER,
    config_class=SpeakerConfig,
    build=_build,
    run_name=lambda config: f"{TRAINER}-{config.preset}-seed{config.seed}",
    artifacts=("instructions.txt", "speaker/", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME | {"long_instructions"},  # data of equal bits, or an error
)
