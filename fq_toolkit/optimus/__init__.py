"""Optimus (EMNLP 2020, arXiv 2004.04092): sentence VAEs from any encoder and any decoder of transformers.

``fq-toolkit train optimus`` on the command line. The names are loaded on first use.
"""

from typing import TYPE_CHECKING

from fq_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
    from fq_toolkit.optimus.metrics.language_metrics import LanguageScores, measure_language
    from fq_toolkit.optimus.metrics.latent_metrics import active_units, mutual_information
    from fq_toolkit.optimus.metrics.text_metrics import Distinct, corpus_bleu, distinct_ngrams, self_bleu
    from fq_toolkit.optimus.model.batch import TextBatch, Tokenizers, make_batch
    from fq_toolkit.optimus.model.convert import convert_optimus
    from fq_toolkit.optimus.model.hub import add_text_tokens
    from fq_toolkit.optimus.model.interpolation import analogy_latents, interpolate_latents
    from fq_toolkit.optimus.model.losses import VAEOutput, free_bits
    from fq_toolkit.optimus.model.posterior import Posterior
    from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
    from fq_toolkit.optimus.tasks.schedules import BetaSchedule, Phase, cyclical_beta
    from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
    from fq_toolkit.optimus.tasks.vae.runs import load_model
    from fq_toolkit.optimus.tasks.vae.training import train

_HOME = {
    "BetaSchedule": "fq_toolkit.optimus.tasks.schedules",
    "Distinct": "fq_toolkit.optimus.metrics.text_metrics",
    "LanguageScores": "fq_toolkit.optimus.metrics.language_metrics",
    "OptimusConfig": "fq_toolkit.optimus.tasks.vae.config",
    "Phase": "fq_toolkit.optimus.tasks.schedules",
    "Posterior": "fq_toolkit.optimus.model.posterior",
    "SentenceVAE": "fq_toolkit.optimus.model.sentence_vae",
    "TextBatch": "fq_toolkit.optimus.model.batch",
    "Tokenizers": "fq_toolkit.optimus.model.batch",
    "VAEOutput": "fq_toolkit.optimus.model.losses",
    "active_units": "fq_toolkit.optimus.metrics.latent_metrics",
    "add_text_tokens": "fq_toolkit.optimus.model.hub",
    "analogy_latents": "fq_toolkit.optimus.model.interpolation",
    "convert_optimus": "fq_toolkit.optimus.model.convert",
    "corpus_bleu": "fq_toolkit.optimus.metrics.text_metrics",
    "cyclical_beta": "fq_toolkit.optimus.tasks.schedules",
    "distinct_ngrams": "fq_toolkit.optimus.metrics.text_metrics",
    "free_bits": "fq_toolkit.optimus.model.losses",
    "interpolate_latents": "fq_toolkit.optimus.model.interpolation",
    "load_model": "fq_toolkit.optimus.tasks.vae.runs",
    "make_batch": "fq_toolkit.optimus.model.batch",
    "measure_language": "fq_toolkit.optimus.metrics.language_metrics",
    "mutual_information": "fq_toolkit.optimus.metrics.latent_metrics",
    "self_bleu": "fq_toolkit.optimus.metrics.text_metrics",
    "train": "fq_toolkit.optimus.tasks.vae.training",
    "train_tokenizers": "fq_toolkit.optimus.data.tokenizer_training",
}

__all__ = [
    "BetaSchedule",
    "Distinct",
    "LanguageScores",
    "OptimusConfig",
    "Phase",
    "Posterior",
    "SentenceVAE",
    "TextBatch",
    "Tokenizers",
    "VAEOutput",
    "active_units",
    "add_text_tokens",
    "analogy_latents",
    "convert_optimus",
    "corpus_bleu",
    "cyclical_beta",
    "distinct_ngrams",
    "free_bits",
    "interpolate_latents",
    "load_model",
    "make_batch",
    "measure_language",
    "mutual_information",
    "self_bleu",
    "train",
    "train_tokenizers",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
