"""The pretraining: masked words and next actions, one forward for both."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.prevalent.model.encoder import FOLDER, PrevalentModel, count_parameters
from fq_toolkit.prevalent.tasks.pretraining.benefit import measure_benefit
from fq_toolkit.prevalent.tasks.pretraining.config import TRAINER, PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import PretrainingData, load_pretraining_data
from fq_toolkit.prevalent.tasks.pretraining.evaluation import PretrainingResult, score_steps, write_evaluation
from fq_toolkit.prevalent.tasks.pretraining.network import PretrainingNetwork
from fq_toolkit.prevalent.tasks.pretraining.steps import WordMasker
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask


class PretrainingTask(TrainingTask):
    """A pretraining in progress: the task that `fq_toolkit.training.loop.run_loop` drives.

    Args:
        config: all options.
        data: what is trained and validated on.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        ConfigError: when the training steps do not fill a batch.
    """

    trained_on = "the annotations, graphs, features or words"
    last_evaluation: PretrainingResult | None = None

    def __init__(self, config: PretrainingConfig, data: PretrainingData, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        seed_everything(config.seed)  # the same weights everywhere
        self.network = PretrainingNetwork(
            config, vocab_size=len(data.vocabulary), vision_size=data.train.vision_size
        ).to(accelerator.device)
        try:
            self.order = ShuffledIndices(
                len(data.train), config.batch_size, seed=config.seed, rank=rank, world=world
            )
        except ValueError as error:
            raise ConfigError(f"batch_size: {error}") from error
        self.masker = WordMasker(data.vocabulary, share=config.mask_share)
        column = {"loss": "held-out loss/total", "accuracy": "held-out accuracy/action"}[config.select_by]
        self.selection = Selection(column, highest=config.select_by == "accuracy")
        # The head shares the word embeddings with the model; parameters() names them once.
        self.weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            self.weights, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.wrapped, self.optimizer = accelerator.prepare(self.network, optimizer)
        seed_everything(rank_seed(config.seed, rank))  # other masks on every process

    @property
    def source(self) -> str:
        """Return the files that the triplets come from."""
        return self.config.source

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what is trained on."""
        return self.data.fingerprint()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear rise over the warm-up, then linear decay to 0."""
        total, warmup = self.config.steps, self.config.warmup * self.config.steps
        rising = min(1.0, (step + 1) / warmup) if warmup else 1.0  # + 1: the first update is not lost
        return self.config.lr * rising * max(0.0, 1 - step / total)

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update: both losses of `PretrainingNetwork` on one batch of time steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        batch = self.data.train.batch(self.order.next())
        ids, labels = self.masker(batch.ids)  # fresh masks: a path is seen with other words hidden each time
        device = self.accelerator.device
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            out = self.wrapped(batch.to(device), ids.to(device), labels.to(device))
        self.accelerator.backward(out.loss)
        # After backward, before the update: clip_grad_norm_ also undoes the loss scale of fp16.
        self.accelerator.clip_grad_norm_(self.weights, self.config.clip)
        self.optimizer.step()
        return {
            "loss/total": out.loss.detach(),
            "loss/words": out.mlm_loss.detach(),
            "loss/action": out.action_loss.detach(),
        }

    def summary(self) -> str:
        """Return one line: data, network, labels, device."""
        config = self.config
        return (
            f"{self.data.description}; {config.text_layers} text and {config.cross_layers} cross-modal "
            f"layers of width {config.hidden_size}, {count_parameters(self.network):,} weights; actions "
            f"{config.action_label}; {self.where()}"
        )

    def gauges(self) -> dict[str, float]:
        """Return the learning rate of the last update."""
        return {"rate/lr": float(self.optimizer.param_groups[0]["lr"])}

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        return [
            "seconds", "loss/total", "loss/words", "loss/action", "rate/lr", "held-out loss/total",
            "held-out loss/words", "held-out loss/action", "held-out accuracy/words",
            "held-out accuracy/action",
        ]  # fmt: skip

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the held-out instructions."""
        return self.data.measured_on()

    def evaluate(self) -> dict[str, float]:
        """Measure on held-out paths; training and its random state stay as they were."""
        scores = score_steps(self.network, self.data.validation, self.masker, limit=self.config.eval_steps)
        self.last_evaluation = PretrainingResult(scores)
        words, actions = self.config.loss_weights
        return {
            "held-out loss/total": words * scores.mlm_loss + actions * scores.action_loss,
            "held-out loss/words": scores.mlm_loss,
            "held-out loss/action": scores.action_loss,
            "held-out accuracy/words": scores.word_accuracy,
            "held-out accuracy/action": scores.action_accuracy,
        }

    def modules(self) -> dict[str, Any]:
        """Return model and heads as one network."""
        return {"network": self.network}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the time steps."""
        return {"order": self.order}

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write the model, and when the run is complete ``evaluation.json``."""
        save_model(run, self.network.model, self.data)
        if complete and self.last_evaluation is not None:
            if self.config.generated and self.config.fine_tune:
                benefit = measure_benefit(self.config, self.network.model, self.data.vocabulary)
                self.last_evaluation = PretrainingResult(self.last_evaluation.scores, benefit)
            write_evaluation(
                run,
                self.config,
                self.data,
                self.last_evaluation,
                step=result.step,
                seconds=result.seconds,
            )


def save_model(run: RunFolder, model: PrevalentModel, data: PretrainingData) -> None:
    """Write ``model/``: what `PrevalentModel.from_pretrained` reads, and the vocabulary."""
    folder = model.save_pretrained(run.path / FOLDER)
    data.vocabulary.save(folder / VOCABULARY)


def build_pretraining(config: PretrainingConfig, accelerator: Any) -> PretrainingTask:
    """Load the data and build the task."""
    return PretrainingTask(config, load_pretraining_data(config), accelerator)


def run_name(config: PretrainingConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.action_label}-seed{config.seed}"


PRETRAINER = Trainer(
    name=TRAINER,
    config_class=PretrainingConfig,
    build=build_pretraining,
    run_name=run_name,
    artifacts=("model/", "curves.png", "metrics.csv"),
    # The learning rate falls to 0 over the steps, so another number of steps is another run.
    free_on_resume=session.FREE_ON_RESUME - {"steps"} | {"long_instructions", "select_by"},
)


def train(config: PretrainingConfig | None = None, **options: Any) -> TrainResult:
    """Pretrain, or go on with a run; options as of `fq_toolkit.training.session.train`."""
    return session.train(PRETRAINER, config, **options)
