"""Tiny networks and tokenizers, and a latent-variable model whose likelihood is known exactly."""

import math
import os
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from fq_toolkit.optimus.model.batch import TextBatch, Tokenizers
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from tests.layers.latent.oracle import FAMILIES, randomize

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

WORDS = ["a", "man", "rides", "horse", "two", "dogs", "play", "in", "the", "snow", "girl", "runs", "."]
TEXTS = ["a man rides a horse .", "two dogs play in the snow .", "a girl runs ."]
NZ = 6


def word_tokenizer(specials: dict[str, str], words: list[str] = WORDS) -> Any:
    """A word-level tokenizer without any template."""
    import tokenizers

    names = [*dict.fromkeys(specials.values()), *words]
    unknown = specials.get("unk_token", names[0])
    vocabulary = {name: number for number, name in enumerate(names)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **specials)


def toy_tokenizers(words: list[str] = WORDS) -> Tokenizers:
    """PAD 0, UNK 1, CLS 2, SEP 3 and PAD 0, BOS 1, EOS 2, UNK 3; then the words in order."""
    reader = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    writer = {"pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<EOS>", "unk_token": "<UNK>"}
    return Tokenizers(word_tokenizer(reader, words), word_tokenizer(writer, words))


def toy_vae(mode: str = "memory", *, seed: int = 0, dropout: float = 0.1, **settings: Any) -> SentenceVAE:
    """A tiny model in eval mode with weights so large that everything depends on everything."""
    torch.manual_seed(seed)
    vae = SentenceVAE.from_scratch(
        toy_tokenizers(), width=16, positions=32, dropout=dropout, latent_size=NZ, mode=mode, **settings
    )
    return randomize(vae, 0.4, seed)


def decoder_of(family: str, **changes: Any) -> Any:
    """A tiny decoder of a family with the toy vocabulary."""
    kind, config, settings = FAMILIES[family]
    # Untied: with tied tables an untrained model says the same word again and again.
    changes = {"vocab_size": 4 + len(WORDS), "tie_word_embeddings": False, **changes}
    made = getattr(transformers, config)(**{**settings, **changes})
    return randomize(getattr(transformers, kind)(made))


def tiny_encoder(kind: str) -> Any:
    """A tiny encoder in eval mode."""
    size: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40,
    }  # fmt: skip
    made: Any
    if kind == "bert":
        made = transformers.BertModel(transformers.BertConfig(**size))
    elif kind == "bert without a pooler":
        made = transformers.BertModel(transformers.BertConfig(**size), add_pooling_layer=False)
    elif kind == "roberta":
        made = transformers.RobertaModel(transformers.RobertaConfig(**size, pad_token_id=1))
    elif kind == "distilbert":
        made = transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=40
            )
        )
    elif kind == "t5":
        made = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    else:
        raise ValueError(kind)
    return randomize(made)


class LinearGaussian:
    """``z ~ N(0, 1)``, ``x | z ~ N(a z, s^2)`` in one dimension, where everything is known in closed form.

    ``p(x) = N(0, a^2 + s^2)`` and ``p(z|x) = N(a x / (a^2 + s^2), s^2 / (a^2 + s^2))``.  A sentence's token
    ids stand for x: x = ids[:, 1] / 10.

    Args:
        shift: added to the mean of the posterior, to make it wrong.
        stretch: factor of its variance.
    """

    a, s = 0.8, 0.5

    def __init__(self, shift: float = 0.0, stretch: float = 1.0) -> None:
        self.shift, self.stretch = shift, stretch

    def posterior(self, ids: Tensor, mask: Tensor) -> Posterior:
        x, total = ids[:, 1:2] / 10, self.a**2 + self.s**2
        variance = torch.full_like(x, self.stretch * self.s**2 / total)
        return Posterior(self.a * x / total + self.shift, variance.log())

    def nll(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        scaled = (ids[:, 1] / 10 - self.a * z[:, 0]) / self.s
        return 0.5 * scaled.square() + math.log(self.s) + 0.5 * math.log(2 * math.pi)

    def log_px(self, x: np.ndarray) -> np.ndarray:
        variance = self.a**2 + self.s**2
        return -0.5 * (x**2 / variance + math.log(2 * math.pi * variance))

    @staticmethod
    def batch(x: np.ndarray) -> TextBatch:
        ids = torch.stack([torch.zeros(len(x)), torch.tensor(x * 10, dtype=torch.float32)], 1).double()
        return TextBatch(ids, torch.ones_like(ids), ids, torch.ones_like(ids))
