"""Random numbers that belong to a sentence, so that measurements depend on neither batches nor order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


class SentenceNoise:
    """Standard normal draws for each sentence, seeded by one draw of a generator and the sentence itself.

    A sentence that occurs several times gets other draws each time.

    Args:
        texts: N sentences.
        generator: source of the draw; torch's global one by default.

    Example:
        >>> import torch
        >>> one, other = (SentenceNoise(t, torch.Generator().manual_seed(0)) for t in (["a", "b"], ["b"]))
        >>> torch.equal(one.normal([1], 3, 4), other.normal([0], 3, 4))
        True
    """

    def __init__(self, texts: Sequence[str], generator: torch.Generator | None = None) -> None:
        place = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=place))
        seen: Counter[str] = Counter()
        self._digests = []
        for text in texts:
            self._digests.append(hashlib.sha256(f"{seed} {seen[text]} {text}".encode()).digest())
            seen[text] += 1

    def normal(self, rows: Sequence[int], count: int, size: int) -> Tensor:
        """Return the draws of these sentences, (count, len(rows), size) on the CPU; always the same ones."""
        generator, draws = torch.Generator(), torch.empty(count, len(rows), size)
        for place, row in enumerate(rows):
            generator.manual_seed(int.from_bytes(self._digests[row][:7], "big"))
            draws[:, place] = torch.randn(count, size, generator=generator)
        return draws

    def others(self) -> list[int]:
        """Return for each sentence the row of another one: the next in a random order."""
        order = sorted(range(len(self._digests)), key=lambda row: self._digests[row])
        other = [0] * len(order)
        for row, following in zip(order, [*order[1:], *order[:1]], strict=True):
            other[row] = following
        return other
