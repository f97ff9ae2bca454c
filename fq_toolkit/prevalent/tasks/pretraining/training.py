"""The pretraining: masked words and next actions, one forward for both."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.layers.vln_pretraining_head import VLNPretrainingHead, VLNPretrainingOutput
from fq_toolkit.prevalent.model.encoder import FOLDER, PrevalentModel, count_parameters
from fq_toolkit.prevalent.tasks.pretraining.benefit import Benefit, measure_benefit
from fq_toolkit.prevalent.tasks.pretraining.config import TRAINER, PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import PretrainingData, load_pretraining_data
from fq_toolkit.prevalent.tasks.pretraining.masking import WordMasker
from fq_toolkit.prevalent.tasks.pretraining.steps import PretrainingSteps, StepBatch
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.reporting.progress import Reporter
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage import evaluation
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

EVALUATION_SEED = 10638


class PretrainingScores(NamedTuple):
    """How well held-out paths are understood.

    mlm_loss: cross-entropy of the hidden words.
    action_loss: cross-entropy of the next actions.
    word_accuracy: share of the hidden words that are guessed.
    action_accuracy: share of the next actions that are guessed.
    words: hidden words there were.
    steps: time steps there were.
    """

    mlm_loss: float
    action_loss: float
    word_accuracy: float
    action_accuracy: float
    words: int
    steps: int

    def __str__(self) -> str:
        return (
            f"held-out paths: loss {self.mlm_loss:.3f} of words and {self.action_loss:.3f} of actions; "
            f"masked words {100 * self.word_accuracy:.1f} % right, actions {100 * self.action_accuracy:.1f} %"
        )


class PretrainingResult(NamedTuple):
    """A measurement: of the pretraining itself, and where it was asked for, of what it is worth."""

    scores: PretrainingScores
    benefit: Benefit | None = None

    def __str__(self) -> str:
        return f"{self.scores}" + ("" if self.benefit is None else f"\n{self.benefit}")


class PretrainingNetwork(nn.Module):
    """The model and its heads.

    Args:
        config: options.
        vocab_size: words.
        vision_size: width of a view with its angles.
    """

    def __init__(self, config: PretrainingConfig, *, vocab_size: int, vision_size: int) -> None:
        super().__init__()
        self.action_from = config.action_from
        self.model = PrevalentModel(config.model_config(vocab_size=vocab_size, vision_size=vision_size))
        self.head = VLNPretrainingHead(
            config.hidden_size,
            vocab_size,
            VIEWS + 1 if config.action_label == "view36" else VIEWS,
            action_mode="pointer" if config.action_label == "candidate" else "cls",
            tie_to=self.model.get_input_embeddings(),
            loss_weights=config.loss_weights,
        )

    def forward(self, batch: StepBatch, ids: Tensor, labels: Tensor) -> VLNPretrainingOutput:
        """Guess the hidden words and the next actions.

        Args:
            batch: time steps.
            ids: int64 (B, L), their instructions with words hidden.
            labels: int64 (B, L), the hidden words, -1 elsewhere.
        """
        tokens = ids != 0
        needed = tokens if self.action_from == "words" else labels >= 0
        out = self.model(ids, tokens, batch.views, needed=needed)
        candidates = None if batch.candidates is None else self.model.vision_encoder(batch.candidates)
        pooled = out.pooled
        if self.action_from == "words":
            words = tokens.unsqueeze(-1)
            pooled = (out.language * words).sum(dim=1) / words.sum(dim=1)
        return self.head(out.language, pooled, labels, batch.actions, candidates, batch.candidate_mask)


class Pretraining(TrainingTask):
    """A pretraining: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

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
        """Return the learning rate of a step: up over the warm-up, then down to 0 in a line."""
        total, warmup = self.config.steps, self.config.warmup * self.config.steps
        rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return self.config.lr * rising * max(0.0, 1 - step / total)

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        batch = self.data.train.batch(self.order.next())
        ids, labels = self.masker(batch.ids)
        device = self.accelerator.device
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            out = self.wrapped(batch.to(device), ids.to(device), labels.to(device))
        self.accelerator.backward(out.loss)
        self.accelerator.clip_grad_norm_(self.weights, self.config.clip)
        self.optimizer.step()
        return {
            "loss/total": out.loss.detach(),
            "loss/words": out.mlm_loss.detach(),
            "loss/action": out.action_loss.detach(),
        }

    def summary(self) -> str:
        """Return one line: data, network, labels, device."""
        config, device = self.config, self.accelerator.device
        where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        if self.accelerator.num_processes > 1:
            where += f", {self.accelerator.num_processes} processes"
        return (
            f"{self.data.description}; {config.text_layers} text and {config.cross_layers} cross-modal "
            f"layers of width {config.hidden_size}, {count_parameters(self.network):,} weights; actions "
            f"{config.action_label}; {where}"
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


def score_steps(
    network: PretrainingNetwork,
    steps: PretrainingSteps,
    masker: WordMasker,
    *,
    limit: int,
    batch_size: int = 100,
) -> PretrainingScores:
    """Measure a network: the same time steps and the same masks every time.

    Args:
        network: model and heads.
        steps: of held-out paths.
        masker: hides words.
        limit: time steps to look at, drawn once.
        batch_size: time steps at once.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    totals = torch.zeros(6, dtype=torch.float64)
    with isolated_rng(EVALUATION_SEED), torch.no_grad():
        for index in torch.randperm(len(steps))[:limit].sort().values.split(batch_size):
            batch = steps.batch(index)
            ids, labels = masker(batch.ids)
            out = network(batch.to(device), ids.to(device), labels.to(device))
            hidden = labels[labels >= 0]
            words, rows = len(hidden), len(batch.actions)
            totals += torch.tensor(
                [
                    out.mlm_loss.item() * words,
                    out.action_loss.item() * rows,
                    (out.mlm_logits.argmax(-1).cpu() == hidden).sum().item(),
                    (out.action_logits.argmax(-1).cpu() == batch.actions).sum().item(),
                    words,
                    rows,
                ],
                dtype=torch.float64,
            )
    network.train(training)
    mlm, action, right_words, right_actions, words, rows = totals.tolist()
    some = max(1, int(words))
    return PretrainingScores(
        mlm / some, action / rows, right_words / some, right_actions / rows, int(words), int(rows)
    )


def save_model(run: RunFolder, model: PrevalentModel, data: PretrainingData) -> None:
    """Write ``model/``: what `PrevalentModel.from_pretrained` reads, and the vocabulary."""
    folder = model.save_pretrained(run.path / FOLDER)
    data.vocabulary.save(folder / VOCABULARY)


def write_evaluation(
    run: RunFolder,
    config: PretrainingConfig,
    data: PretrainingData,
    result: PretrainingResult,
    *,
    step: int,
    seconds: float,
    **more: Any,
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    benefit = result.benefit
    both = (
        {}
        if benefit is None
        else {name: getattr(benefit, name)._asdict() for name in ("pretrained", "scratch")}
    )
    figures = {
        **more,
        **result.scores._asdict(),
        "fine_tuned": None if benefit is None else {**benefit._asdict(), **both},
        "action_label": config.action_label,
        "data": data.description,
        "features_synthesised": data.features_synthesised,
        "synthesised_share": data.synthesised / len(data.train),
    }
    evaluation.write_evaluation(
        run.evaluation,
        figures,
        step=step,
        seconds=seconds,
        measured_on=data.measured_on(),
        seed=config.seed,
    )


def build_pretraining(config: PretrainingConfig, accelerator: Any) -> Pretraining:
    """Load the data and build the task."""
    return Pretraining(config, load_pretraining_data(config), accelerator)


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


def train(
    config: PretrainingConfig | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Pretrain, or go on with a run: :func:`fq_toolkit.training.session.train` of this trainer."""
    return session.train(PRETRAINER, config, out=out, resume=resume, reporter=reporter, stop_after=stop_after)
