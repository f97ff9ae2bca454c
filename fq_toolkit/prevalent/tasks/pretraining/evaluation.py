"""How well a network has learned from pretraining, and the file that says so."""

from typing import Any, NamedTuple

import torch

from fq_toolkit.prevalent.tasks.pretraining.benefit import Benefit
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import PretrainingData
from fq_toolkit.prevalent.tasks.pretraining.network import PretrainingNetwork
from fq_toolkit.prevalent.tasks.pretraining.steps import PretrainingSteps, WordMasker
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.storage import evaluation
from fq_toolkit.training.storage.run_folder import RunFolder

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
    totals = torch.zeros(6, dtype=torch.float64)  # sums in double: many small batches of different sizes
    # One seed for the time steps and the masks, so that figures of one run can be compared.
    with isolated_rng(EVALUATION_SEED), torch.no_grad():
        for index in torch.randperm(len(steps))[:limit].sort().values.split(batch_size):
            batch = steps.batch(index)
            ids, labels = masker(batch.ids)
            out = network(batch.to(device), ids.to(device), labels.to(device))
            hidden = labels[labels >= 0]  # in reading order, as the head returns its logits
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
    some = max(1, int(words))  # few short instructions may have no hidden word at all
    return PretrainingScores(
        mlm / some, action / rows, right_words / some, right_actions / rows, int(words), int(rows)
    )


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
