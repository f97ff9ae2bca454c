"""Measures of a sentence VAE: language, latent space, and analogies if they can be scored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fq_toolkit.optimus.data.corpus import Corpus
from fq_toolkit.optimus.metrics.analogies import Analogy, AnalogyScore, draw_analogies, score_analogies
from fq_toolkit.optimus.metrics.language_metrics import LanguageScores, measure_language, readable
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
from fq_toolkit.training.errors import ConfigError

EVALUATION_SEED = 0
NEGATIVE_ELBO = "held out/-ELBO"
"""The figure by which the best checkpoint is kept: the smaller, the better."""
# Field of LanguageScores -> column of metrics.csv, PANEL/CURVE.
_COLUMNS = {
    "ppl_per_bpe_token": "perplexity/per token",
    "ppl_per_word": "perplexity/per word",
    "negative_elbo": NEGATIVE_ELBO,
    "kl": "held out/KL",
    "mutual_information": "held out/mutual information",
    "reconstruction_from_mean": "held out/reconstruction",
    "reconstruction_from_other": "held out/reconstruction from another latent",
    "active_units": "latent/active units",
}
# Column of metrics.csv -> field of AnalogyScore.
_ANALOGIES = {f"analogy/{name}": name for name in ("accuracy", "changed", "kept")}


class Evaluation(NamedTuple):
    """One measurement of a model.

    language: likelihood, perplexities, and the use of the latents.
    latent_size: of which the active units are a part.
    analogies: scores on held-out combinations of factors; None without the grammar.
    """

    language: LanguageScores
    latent_size: int
    analogies: AnalogyScore | None

    def __str__(self) -> str:
        s = self.language
        left_out = f" ({s.left_out} longer than the model reads left out)" if s.left_out else ""
        lines = [
            f"{s.sentences} held-out sentences{left_out}: "
            f"perplexity {s.ppl_per_bpe_token:.2f} per token (the paper's), {s.ppl_per_word:.2f} per word"
            f"{_not_comparable(s.unknown)}, with {s.draws} draws; -ELBO {s.negative_elbo:.2f} nats",
            f"latent: KL {s.kl:.2f} nats, mutual information {s.mutual_information:.2f} nats "
            f"({s.mutual_information_analytic:.2f} as the release estimates it), "
            f"{s.active_units} of {self.latent_size} dimensions active",
            f"reconstruction {s.reconstruction_from_mean:.2f} nats from a sentence's own latent, "
            f"{s.reconstruction_from_other:.2f} from another's",
        ]
        if self.analogies is not None:
            a = self.analogies
            each = ", ".join(f"{factor} {100 * hits:.0f}" for factor, hits in a.by_factor.items())
            lines.append(
                f"analogies on held-out combinations: {100 * a.accuracy:.1f} % right ({each}); "
                f"factor changed {100 * a.changed:.1f} %, others kept {100 * a.kept:.1f} %"
            )
        return "\n".join(lines)

    def values(self) -> dict[str, float]:
        """Return the figures as columns of ``metrics.csv``."""
        values = {column: float(getattr(self.language, field)) for field, column in _COLUMNS.items()}
        if self.analogies is not None:
            values |= {column: getattr(self.analogies, field) for column, field in _ANALOGIES.items()}
        return values

    def record(self) -> dict[str, Any]:
        """Return the figures for ``evaluation.json``."""
        analogies = None if self.analogies is None else self.analogies._asdict()
        return {**self.language._asdict(), "latent_size": self.latent_size, "analogies": analogies}


def _not_comparable(unknown: float) -> str:
    """Return what to add to a perplexity per word when words are unknown, which are easy to predict."""
    return f" (not comparable: {100 * unknown:.2g} % of the tokens are unknown words)" if unknown else ""


class Evaluator:
    """Measures models of one run, always with the same sentences, analogies and draws.

    Args:
        config: numbers of sentences, draws and analogies.
        corpus: with the sentences to measure with.
    """

    def __init__(self, config: OptimusConfig, corpus: Corpus) -> None:
        # Spread over the corpus: its beginning may be of one kind.
        every = max(1, len(corpus.valid) // config.eval_sentences)
        self.texts = corpus.valid[::every][: config.eval_sentences]
        self.draws = config.iw_samples
        self.questions: list[Analogy] = []
        if corpus.grammar is not None:
            self.questions = draw_analogies(corpus.grammar, config.eval_analogies, seed=EVALUATION_SEED)
        self.columns = [*_COLUMNS.values(), *(_ANALOGIES if self.questions else [])]

    def check(self, vae: SentenceVAE, source: str) -> int:
        """Refuse sentences that cannot be measured before the model is trained, not after.

        Args:
            vae: the model.
            source: where the sentences come from.

        Returns:
            How many of the sentences the model can read.

        Raises:
            ConfigError: when fewer than two of them are short enough for the model.
        """
        try:
            return len(readable(vae, self.texts)[1])
        except ValueError as error:
            raise ConfigError(
                f"nothing can be measured: {error} in {source}; --valid names others"
            ) from error

    def __call__(self, vae: SentenceVAE) -> Evaluation:
        """Measure a model; it keeps its mode, and the global random state is not touched."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        language = measure_language(vae, self.texts, draws=self.draws, generator=generator)
        score = None
        if self.questions:
            a, b, c = ask(self.questions)
            answers = vae.analogy(a, b, c, max_new_tokens=vae.max_length)
            score = score_analogies(self.questions, answers)
        return Evaluation(language, vae.latent_size, score)


def ask(questions: Sequence[Analogy]) -> tuple[list[str], list[str], list[str]]:
    """Return the three sentences of each analogy as three columns."""
    return [q.a for q in questions], [q.b for q in questions], [q.c for q in questions]
