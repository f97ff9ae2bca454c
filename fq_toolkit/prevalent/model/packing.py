"""Packing: the positions of a padded batch that are worth computing, in one row after the other."""

import torch
from torch import Tensor


class Packing:
    """Chosen positions of a batch (B, L): N rows for what acts on each alone, B texts for attention.

    Linear maps, norms and feed-forward blocks see N rows and no padding. Attention needs the texts apart
    from each other: for it the rows are spread over (B, W), each text from its first slot on, where W is
    the largest number of positions chosen in a text.

    Args:
        chosen: bool (B, L), at least one True.

    Example:
        >>> packing = Packing(torch.tensor([[True, True, True], [True, False, True]]))
        >>> rows = packing.pick(torch.tensor([[1., 2, 3], [4, 5, 6]]).unsqueeze(2))
        >>> rows.flatten().tolist()
        [1.0, 2.0, 3.0, 4.0, 6.0]
        >>> packing.spread(rows).squeeze(2).tolist()
        [[1.0, 2.0, 3.0], [4.0, 6.0, 0.0]]
        >>> packing.restore(rows).squeeze(2).tolist()
        [[1.0, 2.0, 3.0], [4.0, 0.0, 6.0]]
    """

    def __init__(self, chosen: Tensor) -> None:
        self.shape = chosen.shape
        self.places = chosen.flatten().nonzero().squeeze(1)
        """int64 (N,), places in (B, L) laid flat."""
        ranks = chosen.cumsum(dim=1) - 1
        self.width = int(ranks.max()) + 1
        """W."""
        starts = torch.arange(len(chosen), device=chosen.device).unsqueeze(1) * self.width
        self._slots = (starts + ranks).flatten().index_select(0, self.places)

    def pick(self, texts: Tensor) -> Tensor:
        """Return the rows of the chosen positions: (B, L, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self.places)

    def restore(self, rows: Tensor) -> Tensor:
        """Undo `pick`, zeros where nothing was chosen: (N, ...) to (B, L, ...)."""
        return self._place(rows, self.places, self.shape[1])

    def spread(self, rows: Tensor) -> Tensor:
        """Return texts with zeros behind their last row: (N, ...) to (B, W, ...)."""
        return self._place(rows, self._slots, self.width)

    def collect(self, texts: Tensor) -> Tensor:
        """Undo `spread`: (B, W, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self._slots)

    def _place(self, rows: Tensor, places: Tensor, width: int) -> Tensor:
        flat = rows.new_zeros(self.shape[0] * width, *rows.shape[1:])
        return flat.index_copy(0, places, rows).unflatten(0, (self.shape[0], width))


def pack_needed(needed: Tensor, mask: Tensor | None) -> tuple[Packing, Packing, Tensor | None]:
    """Return what has to be computed for the states at some positions of texts.

    Args:
        needed: (B, L), True or 1 at the positions; the first of every text is always one.
        mask: (B, L), True or 1 at tokens; None when nothing is padding.

    Returns:
        The packing of the texts, that of the needed positions, and the mask (B, W) of the first. Texts
        hold their tokens and what is needed of their padding; a text without any token holds all of its
        padding, which then attends to itself.
    """
    needed = needed.bool()
    needed = torch.cat([torch.ones_like(needed[:, :1]), needed[:, 1:]], dim=1)
    if mask is None:
        return Packing(torch.ones_like(needed)), Packing(needed), None
    tokens = mask.bool()
    packing = Packing(needed | tokens | ~tokens.any(dim=1, keepdim=True))
    return packing, Packing(needed), packing.spread(packing.pick(tokens))
