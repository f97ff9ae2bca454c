"""Masked words: which are hidden, and what stands in their place."""

import torch
from torch import Tensor

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.text.vocabulary import Vocabulary

REPLACED, RANDOM = 0.8, 0.1  # of the chosen words; the rest stays as it is


class WordMasker:
    """Chooses words to be guessed: 80 % become ``[MASK]``, 10 % another word, 10 % stay; fresh at each call.

    Special tokens are never chosen, and never stand in for a word.

    Args:
        vocabulary: the words.
        share: of the words that are chosen, each on its own.

    Raises:
        DataError: for a vocabulary of special tokens alone.

    Example:
        >>> vocabulary = Vocabulary.train(["turn left at the sofa"])
        >>> masker = WordMasker(vocabulary, share=1.0)
        >>> ids, labels = masker(torch.tensor([vocabulary.encode("turn left", length=6)]))
        >>> labels.tolist() == [[-1, *vocabulary.pieces("turn left"), -1, -1, -1]]
        True

    Source: BERT, arXiv 1810.04805, section 3.1.
    """

    def __init__(self, vocabulary: Vocabulary, *, share: float = 0.15) -> None:
        special = vocabulary.special_ids
        words = [number for number in range(len(vocabulary)) if number not in special]
        if not words:
            raise DataError("the vocabulary has no words, only special tokens: are all instructions empty?")
        self.share, self.mask = share, vocabulary.mask
        self._words = torch.tensor(words)
        self._special = torch.zeros(len(vocabulary), dtype=torch.bool)
        self._special[list(special)] = True

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hide words of instructions.

        Args:
            ids: int64 (B, L), on the CPU; drawn with torch's global generator.

        Returns:
            The ids with words hidden, and labels: the word where it was chosen, -1 elsewhere.
        """
        chosen = (torch.rand(ids.shape) < self.share) & ~self._special[ids]
        fate = torch.rand(ids.shape)
        others = self._words[torch.randint(len(self._words), ids.shape)]
        hidden = torch.where(chosen & (fate < REPLACED), self.mask, ids)
        hidden = torch.where(chosen & (fate >= REPLACED) & (fate < REPLACED + RANDOM), others, hidden)
        return hidden, torch.where(chosen, ids, -1)
