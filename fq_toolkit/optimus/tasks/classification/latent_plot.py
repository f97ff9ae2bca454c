"""A picture of latents: t-SNE in the plane, coloured by label."""

import io
from pathlib import Path

import numpy as np

from fq_toolkit.optimus.data.labels import LabelledCorpus
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.classification.classification import encode_features
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.reporting.plots import COLORS

_FEWEST = 5


def embed_in_plane(latents: np.ndarray, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Compute the t-SNE of latents.

    Args:
        latents: (N, nz).
        seed: of the optimization.
        perplexity: about how many neighbours count; lowered if there are too few latents for it.

    Returns:
        (N, 2).

    Raises:
        ConfigError: fewer than five latents.
    """
    manifold = require("sklearn.manifold", purpose="t-SNE")
    if len(latents) < _FEWEST:
        raise ConfigError(f"t-SNE needs at least {_FEWEST} sentences, got {len(latents)}")
    embedding = manifold.TSNE(
        init="pca" if latents.shape[1] > 1 else "random",
        random_state=seed,
        perplexity=min(perplexity, (len(latents) - 1) / 3),
    )
    return np.asarray(embedding.fit_transform(latents))


def plot_latents(
    vae: SentenceVAE, corpus: LabelledCorpus, target: Path, *, sentences: int = 1000, seed: int = 0
) -> int:
    """Draw the posterior means of held-out sentences.

    Args:
        vae: the model.
        corpus: labelled sentences.
        target: the PNG.
        sentences: how many at most.
        seed: of t-SNE.

    Returns:
        How many were drawn.
    """
    chosen = corpus.valid.take(range(min(sentences, len(corpus.valid.texts))))
    means = encode_features(vae, chosen.texts).mean.numpy()
    points = embed_in_plane(means, seed=seed)
    figures = require("matplotlib.figure", purpose="drawing latents")
    require("matplotlib.backends.backend_agg", purpose="drawing latents")
    figure = figures.Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for label, name in enumerate(corpus.names):
        here = points[chosen.labels == label]
        axes.scatter(here[:, 0], here[:, 1], s=6, alpha=0.7, color=COLORS[label % len(COLORS)], label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"t-SNE of {len(chosen.texts):,} latents by label", fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, markerscale=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(target, buffer.getvalue())
    return len(chosen.texts)
