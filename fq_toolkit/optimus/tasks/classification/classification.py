"""Text classification from latents: features, fine-tuning, and learning curves over few labels.

Source: arXiv 2004.04092, section 4.4 (low-resource language understanding).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.optimus.data.labels import Labelled
from fq_toolkit.optimus.model.batch import TextBatch, by_length, check_texts, make_batch
from fq_toolkit.optimus.model.decoding import evaluating
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.seeding import isolated_rng

_CONFIDENCE = 0.95
# Fine-tuning uses small batches, so that few labels are still seen often enough.
_BATCH, _LR = 32, 5e-4


class Features(NamedTuple):
    """Vectors of sentences.

    pooled: sentence vectors of the encoder, (N, hidden).
    mean: means of the posteriors, (N, nz).
    truncated: how many sentences are longer than the model reads and were truncated.
    """

    pooled: Tensor
    mean: Tensor
    truncated: int


class Result(NamedTuple):
    """The result of one classifier.

    arm: the features that it learned from.
    per_class: labels per class.
    seed: of the choice of the labelled sentences, and of fine-tuning.
    accuracy: on the test sentences, from 0 to 1.
    """

    arm: str
    per_class: int
    seed: int
    accuracy: float


class Summary(NamedTuple):
    """The accuracy of an arm with some number of labels per class, over seeds.

    low, high: 95 % confidence interval of the mean by Student's t; NaN for one seed.
    """

    arm: str
    per_class: int
    seeds: int
    mean: float
    low: float
    high: float


def untrained(vae: SentenceVAE, *, seed: int = 0) -> SentenceVAE:
    """Return a copy of a model with random weights in encoder and projection."""
    fresh = copy.deepcopy(vae)
    with isolated_rng(seed):
        # dtype and device are no part of the configuration
        fresh.encoder = type(vae.encoder)(vae.encoder.config).to(vae.device, vae.encoder.dtype).eval()
        nn.init.normal_(fresh.linear.weight, std=0.02)
    return fresh


def encode_features(vae: SentenceVAE, texts: Sequence[str], *, batch_size: int = 128) -> Features:
    """Return sentence vectors and posterior means, on the CPU, without gradients."""
    texts = check_texts(texts)
    pooled = torch.empty(len(texts), vae.linear.in_features)
    mean, truncated = torch.empty(len(texts), vae.latent_size), 0
    with evaluating(vae):
        for rows in by_length(texts, batch_size):
            batch = _batch(vae, [texts[row] for row in rows])
            truncated += batch.truncated
            vectors = vae.sentence_vector(batch.encoder_ids, batch.encoder_mask)
            pooled[rows] = vectors.float().cpu()
            mean[rows] = vae.linear(vectors).float().chunk(2, dim=-1)[0].cpu()
    return Features(pooled, mean, truncated)


def _batch(vae: SentenceVAE, texts: Sequence[str]) -> TextBatch:
    """Make a batch of sentences on the model's device, without the warning about truncated ones."""
    return make_batch(texts, vae.tokenizers, max_length=vae.max_length).to(vae.device)


def choose(labels: np.ndarray, per_class: int, *, seed: int) -> np.ndarray:
    """Return ``per_class`` rows of each label; those of a smaller number are among those of a larger one.

    Raises:
        ConfigError: when a label has fewer sentences.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) < per_class:
            raise ConfigError(f"label {label} has {len(rows)} sentences, and {per_class} are asked for")
        chosen.append(rows[:per_class])
    return np.concatenate(chosen)


def feature_accuracy(train: Tensor, train_labels: np.ndarray, test: Tensor, test_labels: np.ndarray) -> float:
    """Return the accuracy of a logistic regression on standardized features, with the default penalty."""
    linear = require("sklearn.linear_model", purpose="classification")
    center, spread = train.mean(0), train.std(0, correction=0).clamp_min(1e-6)
    spread = torch.where(spread > 1e-5, spread, torch.ones_like(spread))  # one sentence has no spread
    model = linear.LogisticRegression(max_iter=2000)
    model.fit(((train - center) / spread).numpy(), train_labels)
    return float(model.score(((test - center) / spread).numpy(), test_labels))


class _Classifier(nn.Module):
    """An encoder with a linear layer on its sentence vector or on the posterior's mean."""

    def __init__(self, vae: SentenceVAE, classes: int, *, latent: bool) -> None:
        super().__init__()
        self.vae, self.latent = copy.deepcopy(vae), latent
        self.vae.decoder.requires_grad_(False)  # takes no part in classification
        self.head = nn.Linear(vae.latent_size if latent else vae.linear.in_features, classes)
        self.head.to(vae.device)

    def forward(self, texts: Sequence[str]) -> Tensor:
        batch = _batch(self.vae, texts)
        vectors = self.vae.sentence_vector(batch.encoder_ids, batch.encoder_mask)
        features = self.vae.linear(vectors).chunk(2, dim=-1)[0] if self.latent else vectors
        return self.head(features.float())


def finetuned_accuracy(
    vae: SentenceVAE, train: Labelled, test: Labelled, *, latent: bool, steps: int, seed: int
) -> float:
    """Return the accuracy after fine-tuning the whole encoder with a linear layer; ``vae`` is not changed.

    Args:
        vae: model with the encoder to start from.
        train: labelled sentences.
        test: labelled sentences to measure with.
        latent: whether the linear layer reads the mean of the posterior instead of the sentence vector.
        steps: updates of AdamW, each with 32 sentences or all if there are fewer.
        seed: of the linear layer and the order.
    """
    classes = int(train.labels.max()) + 1
    with isolated_rng(seed):
        model = _Classifier(vae, classes, latent=latent).train()
        trained = [w for w in model.parameters() if w.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=_LR, fused=True)
        for rows in _batches(len(train.texts), steps, seed):
            part = train.take(rows)
            loss = F.cross_entropy(model(part.texts), torch.from_numpy(part.labels).to(vae.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        hits = 0
        with evaluating(model):
            for group in by_length(test.texts, 128):
                part = test.take(group)
                hits += int((model(part.texts).argmax(1).cpu().numpy() == part.labels).sum())
    return hits / len(test.texts)


def _batches(size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the rows of each step, epoch by epoch, each in a new order."""
    random = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < min(_BATCH, size):
            order = np.concatenate([order, random.permutation(size)])
        yield order[:_BATCH]
        order = order[_BATCH:]  # a rest shorter than a batch is joined to the next epoch


def low_resource_curve(
    models: dict[str, SentenceVAE],
    train: Labelled,
    test: Labelled,
    *,
    per_class: Sequence[int],
    seeds: Sequence[int],
    finetune_steps: int,
    report: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Train classifiers on 1, 10, 100 ... labels per class, all arms with the same labelled sentences.

    Args:
        models: name -> model; arms are the latents of the first and the sentence vectors of all.
        train: sentences from which the labelled ones are chosen.
        test: sentences to measure with.
        per_class: numbers of labels per class.
        seeds: repetitions, each with another choice of sentences.
        finetune_steps: updates of each fine-tuning; 0 skips fine-tuning.
        report: called with what is being done.

    Returns:
        One result per arm, number of labels and seed.

    Raises:
        ConfigError: when there are fewer sentences of a label than are asked for.
    """
    picks = {(n, seed): choose(train.labels, n, seed=seed) for n in per_class for seed in seeds}
    # Only sentences that some classifier learns from are encoded.
    needed = np.unique(np.concatenate(list(picks.values())))
    place = {row: i for i, row in enumerate(needed.tolist())}
    first = next(iter(models))
    results = []
    for name, vae in models.items():
        report(f"features of {name}: {len(needed):,} + {len(test.texts):,} sentences")
        known = encode_features(vae, [train.texts[row] for row in needed])
        unknown = encode_features(vae, test.texts)
        if cut := known.truncated + unknown.truncated:
            report(f"{cut:,} of them are longer than {vae.max_length} tokens and lost their end")
        arms = {f"latent, {name}": True} if name == first else {}
        for arm, latent in {**arms, f"pooled, {name}": False}.items():
            seen, unseen = (known.mean, unknown.mean) if latent else (known.pooled, unknown.pooled)
            for (n, seed), rows in picks.items():
                here = torch.tensor([place[row] for row in rows.tolist()])
                accuracy = feature_accuracy(seen[here], train.labels[rows], unseen, test.labels)
                results.append(Result(arm, n, seed, accuracy))
            for (n, seed), rows in picks.items() if finetune_steps else ():
                report(f"fine-tuning {arm}: {n} labels per class, seed {seed}")
                accuracy = finetuned_accuracy(
                    vae, train.take(rows), test, latent=latent, steps=finetune_steps, seed=seed
                )
                results.append(Result(f"{arm}, fine-tuned", n, seed, accuracy))
    return results


def summarize(results: Sequence[Result]) -> list[Summary]:
    """Return means with intervals over seeds, in the order of the results."""
    groups: dict[tuple[str, int], list[float]] = {}
    for row in results:
        groups.setdefault((row.arm, row.per_class), []).append(row.accuracy)
    return [Summary(arm, n, len(values), *interval(values)) for (arm, n), values in groups.items()]


def paired_differences(results: Sequence[Result], arm: str, other: str) -> list[Summary]:
    """Return ``arm`` minus ``other``, seed by seed, for each number of labels."""
    by_seed = {(row.arm, row.per_class, row.seed): row.accuracy for row in results}
    sizes = dict.fromkeys(row.per_class for row in results)
    differences = []
    for n in sizes:
        values = [
            by_seed[arm, n, row.seed] - by_seed[other, n, row.seed]
            for row in results
            if (row.arm, row.per_class) == (arm, n) and (other, n, row.seed) in by_seed
        ]
        if values:
            differences.append(Summary(f"{arm} - {other}", n, len(values), *interval(values)))
    return differences


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % confidence interval by Student's t; NaN for the interval of one value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, float("nan"), float("nan")
    stats = require("scipy.stats", purpose="intervals over seeds")
    reach = stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1) * float(np.std(values, ddof=1)) / count**0.5
    return mean, mean - float(reach), mean + float(reach)
