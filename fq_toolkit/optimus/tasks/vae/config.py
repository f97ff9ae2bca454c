"""Options of the sentence-VAE trainer, and the presets."""

from dataclasses import dataclass
from typing import Annotated

from fq_toolkit.optimus.tasks.config import VAEConfig
from fq_toolkit.training.bounds import NotNegative, Positive, Share, at_least
from fq_toolkit.training.config import find_preset

TRAINER = "optimus"


@dataclass(frozen=True)
class OptimusConfig(VAEConfig):
    """Everything that decides a run; goes to ``config.json`` and back."""

    preset: str = "grammar"
    """Where the other options start."""
    data: str = "grammar"
    """Sentences: grammar (embedded), a file (.txt, .jsonl, each also .gz), or datasets:NAME."""
    valid: str | None = None
    """Sentences to measure with; by default every twentieth of data, or the grammar's held-out ones."""
    init: str | None = None
    """Start from the model of this run, or a saved one, with its tokenizers and sizes."""
    text_key: str = "text"
    """Where the text is in a JSON line or a row of a dataset."""
    steps: Positive[int] = 2400
    """Updates; beta and the learning rate follow schedules of this length."""
    free_bits: NotNegative[float] = 0.5
    """Nats of KL per dimension that are free; the paper's lambda."""
    unit_variance: bool = False
    """Posteriors of variance 1: the release's use_deterministic_connect, which has no free bits."""
    autoencoder_warmup: Share = 0.2
    """Share of the run, at its start, as an autoencoder: no noise on the latent, and beta 0."""
    evaluate_every: NotNegative[int] = 600
    """Steps between evaluations; 0 evaluates only the last step."""
    eval_sentences: Annotated[int, at_least(2)] = 400
    """Sentences per evaluation, spread over those kept for measuring."""
    iw_samples: Positive[int] = 10
    """Draws per sentence of the importance-weighted likelihood, behind the perplexities."""
    eval_analogies: NotNegative[int] = 300
    """Scored analogies per evaluation, on the grammar."""


PRESETS: dict[str, OptimusConfig] = {
    "grammar": OptimusConfig(),
    "captions": OptimusConfig(
        preset="captions", data="", tokenizer="subword", vocab_size=8000,
        max_length=48, width=256, layers=4, dropout=0.1, steps=20_000, lr=5e-4, lr_warmup=0.025, n_cycle=10,
        autoencoder_warmup=0.0, log_every=100, checkpoint_every=2000, evaluate_every=2000,
        eval_sentences=1000, iw_samples=100,
    ),
}  # fmt: skip


def preset(name: str) -> OptimusConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
