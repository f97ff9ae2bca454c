"""New words for a pretrained model: those of a task that were unknown in pretraining."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from fq_toolkit.prevalent.model.encoder import PrevalentModel
from fq_toolkit.prevalent.text.vocabulary import SPECIALS, Vocabulary

_EMBEDDING = "embeddings.word_embeddings.weight"


def add_words(
    model: PrevalentModel, vocabulary: Vocabulary, texts: Iterable[str]
) -> tuple[PrevalentModel, Vocabulary]:
    """Return a model and a vocabulary that also have the words of some texts.

    Known words keep their numbers and weights; new words, such as ``<nav>`` of dialogs, get the numbers
    behind them and new embeddings. A word that the vocabulary can spell in pieces is not new.

    Args:
        model: a pretrained model; it is not changed.
        vocabulary: its words.
        texts: texts of the task.

    Returns:
        The model and the vocabulary; the given ones if no word is new.

    Example:
        >>> from fq_toolkit.prevalent import PrevalentConfig
        >>> old = Vocabulary.train(["go left"])
        >>> model = PrevalentModel(PrevalentConfig.tiny(vocab_size=len(old), vision_size=192))
        >>> grown, words = add_words(model, old, ["go <NAV> right"])
        >>> words.tokens[:7] == old.tokens, words.tokens[7:], grown.config.vocab_size
        (True, ('<nav>', 'right'), 9)
    """
    words_of_task = Vocabulary.train(texts).tokens[len(SPECIALS) :]
    new = [word for word in words_of_task if vocabulary.unk in vocabulary.pieces(word)]
    if not new:
        return model, vocabulary
    words = Vocabulary([*vocabulary.tokens, *new])
    grown = PrevalentModel(replace(model.config, vocab_size=len(words)))
    old, state = model.state_dict(), grown.state_dict()
    with torch.no_grad():
        for name, value in old.items():
            # Only the embedding table has grown; the rows of the known words are its first ones.
            (state[name][: len(value)] if name == _EMBEDDING else state[name]).copy_(value)
    return grown, words
