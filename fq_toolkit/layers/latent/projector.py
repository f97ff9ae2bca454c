"""From a latent to memory slots and to what is added to the input embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.layers.latent.attention.slots import Slots
from fq_toolkit.layers.latent.spec import LatentSpec

#: Name of the module with the projector in an injected model.
CHILD = "latent_injection"
#: Key of an empty tensor among saved weights. A class that loads them without the latent lists it as
#: unexpected, and so tells its user how to load them with it.
MARK = "is_loaded_by_fq_toolkit_load_latent"


class Projected(NamedTuple):
    """The memory slots and the addition to embeddings that a latent is projected to.

    Attributes:
        memory: key and value of each chosen layer's slots, each (B, heads, slots, head_dim); None without.
        embedding: (B, hidden_size) to add to each input embedding; None without.
    """

    memory: list[Slots] | None
    embedding: Tensor | None


class LatentProjector(nn.Module):
    """The trainable part of an injection.

    Memory: ``h = W_m z`` with ``W_m`` (sum over layers of slots * (key + value) width, nz), split per layer,
    then per slot, then into key and value (one vector for both with ``share_kv``), then into heads.
    Embedding: ``W_e z`` with ``W_e`` (hidden_size, nz), added to every input embedding. Neither has a bias.

    Source: arXiv 2004.04092, section 3.2: ``h_Mem = W_M z`` and ``h'_Emb = h_Emb + W_D z``.

    Args:
        spec: the settings.
        custom: replaces the projection to memory, or to embeddings where there is no memory; maps (..., nz)
            to (..., width).
    """

    def __init__(self, spec: LatentSpec, custom: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.memory: nn.Module | None = None
        self.embedding: nn.Module | None = None
        if spec.has_memory:
            self.memory = custom if custom is not None else _projection(spec, memory_width(spec))
        if spec.has_embedding:
            replaced = custom is not None and not spec.has_memory
            self.embedding = custom if replaced else _projection(spec, spec.hidden_size)
        if custom is not None:
            _check_width(spec, custom)

    def forward(self, latent: Tensor) -> Projected:
        """Project latents that `check_latent` accepts: ``W_m z`` and ``W_e z``, section 3.2.

        Args:
            latent: (B, nz), (B, slots, nz), (B, layers, nz) or (B, layers, slots, nz).

        Returns:
            Memory of each layer, and what is added to the embeddings.
        """
        latent = self._drop(latent)
        memory = embedding = None
        if self.memory is not None:
            memory = _split(self.memory(_by_layer_and_slot(latent, self.spec)), self.spec)
        if self.embedding is not None:
            embedding = self.embedding(latent)
        return Projected(memory, embedding)

    def _drop(self, latent: Tensor) -> Tensor:
        """Replace the latents of some samples by the null latent, in training."""
        if not self.training or self.spec.latent_dropout == 0.0:
            return latent  # without a random number: dropout of 0 must not move the generator
        kept = torch.rand(latent.shape[0], device=latent.device) >= self.spec.latent_dropout
        return latent * kept.view(-1, *[1] * (latent.ndim - 1)).to(latent.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights, from among which the mark of `marked` is taken out."""
        state_dict.pop(prefix + MARK, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return mode, sizes and layers for ``print``."""
        spec = self.spec
        return f"{spec.mode}, latent_size={spec.latent_size}, slots={spec.slots}, layers={len(spec.layers)}"


def memory_width(spec: LatentSpec) -> int:
    """Return how many numbers a projection to memory makes of a latent."""
    return sum(spec.slots * sum(_widths(spec, number)) for number in range(len(spec.sites)))


def is_computed_in(dtype: torch.dtype) -> bool:
    """Return whether numbers are computed in this precision; those of 4 and 8 bits are only stored."""
    return dtype.is_floating_point and dtype.itemsize > 1


def computing_dtype(*like: Tensor) -> torch.dtype:
    """Return the first dtype of these tensors that is computed in, or torch's default."""
    return next((t.dtype for t in like if is_computed_in(t.dtype)), torch.get_default_dtype())


@contextmanager
def marked(child: nn.Module, marks: bool = True) -> Iterator[None]:
    """Put `MARK` among the weights of a projector, in a block that saves them.

    Args:
        child: the projector.
        marks: False leaves the weights as they are, for a block that saves an adapter.
    """

    def mark(_child: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        state[prefix + MARK] = torch.zeros(0)

    handle = child.register_state_dict_post_hook(mark) if marks else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def check_latent(latent: Tensor, spec: LatentSpec) -> None:
    """Refuse a latent of the wrong kind, rank or size.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: a wrong shape, an ambiguous one, or, with ``check_finite``, a NaN or an infinity.
    """
    if not isinstance(latent, Tensor) or not latent.is_floating_point():
        what = f"a tensor of {latent.dtype}" if isinstance(latent, Tensor) else type(latent).__name__
        raise TypeError(f"latent must be a floating-point tensor (B, {spec.latent_size}), got {what}")
    shape, layers, slots = tuple(latent.shape), len(spec.layers), spec.slots
    wanted = f"(B, {spec.latent_size})"
    if not spec.has_embedding:
        wanted += f", (B, slots={slots}, {spec.latent_size}), (B, layers={layers}, {spec.latent_size})"
        wanted += f" or (B, {layers}, {slots}, {spec.latent_size})"
    if len(shape) < 2 or len(shape) > 4 or shape[-1] != spec.latent_size:
        raise ValueError(f"latent must have the shape {wanted}, got {shape}")
    if len(shape) > 2 and spec.has_embedding:
        raise ValueError(f"with mode={spec.mode!r} a latent must have the shape {wanted}, got {shape}")
    if len(shape) == 3:
        if shape[1] not in (slots, layers):
            raise ValueError(f"latent must have the shape {wanted}, got {shape}")
        if slots == layers > 1:
            raise ValueError(
                f"a latent of shape {shape} can mean one per slot or one per layer, as both are {slots}; "
                f"pass (B, {layers}, {slots}, {spec.latent_size}), for example latent[:, None].expand(...)"
            )
    if len(shape) == 4 and shape[1:3] != (layers, slots):
        raise ValueError(f"latent must have the shape {wanted}, got {shape}")
    if spec.check_finite:
        finite = torch.isfinite(latent).flatten(1).all(1)
        if not bool(finite.all()):
            rows = torch.nonzero(~finite).flatten().tolist()
            raise ValueError(f"latent has a NaN or an infinity in row(s) {rows[:8]}; latents must be finite")


def _widths(spec: LatentSpec, number: int) -> list[int]:
    """Return the lengths of the vectors of one slot: of key and value, or of the one that is both."""
    site = spec.sites[number]
    both = [site.heads * site.key_dim, site.heads * site.value_dim]
    return both[:1] if spec.share_kv else both


def _projection(spec: LatentSpec, width: int) -> nn.Module:
    """Return a new projection of latents to ``width`` numbers, as the settings say."""
    if spec.projector == "mlp":
        last = nn.Linear(spec.hidden_size, width, bias=False)
        projection: nn.Module = nn.Sequential(nn.Linear(spec.latent_size, spec.hidden_size), nn.Tanh(), last)
    else:
        projection = last = nn.Linear(spec.latent_size, width, bias=False)
    # Only the last layer, from N(0, init_std) as the released model; PyTorch's default depends on nz.
    nn.init.normal_(last.weight, std=spec.init_std)
    return projection


def _check_width(spec: LatentSpec, custom: nn.Module) -> None:
    """Refuse a projector of the caller's that does not return what the model needs."""
    width = memory_width(spec) if spec.has_memory else spec.hidden_size
    like = next(custom.parameters(), torch.zeros(()))
    dtype = computing_dtype(like, torch.zeros(()))
    with torch.no_grad():
        shape = tuple(custom(torch.zeros(1, spec.latent_size, dtype=dtype, device=like.device)).shape)
    if shape != (1, width):
        raise ValueError(
            f"projector maps (1, {spec.latent_size}) to {shape}, but this model needs (1, {width}): "
            "the last axis must have that length, for any leading axes"
        )


def _by_layer_and_slot(latent: Tensor, spec: LatentSpec) -> Tensor:
    """Return the latent with an axis for layers and one for slots, each of length 1 if it was not given."""
    if latent.ndim == 2:
        return latent[:, None, None]
    if latent.ndim == 3:  # `check_latent` has refused what could be both
        return latent[:, None] if latent.shape[1] == spec.slots else latent[:, :, None]
    return latent


def _split(flat: Tensor, spec: LatentSpec) -> list[Slots]:
    """Cut (B, 1 or layers, 1 or slots, width) into each layer's key and value (B, heads, slots, head_dim)."""
    lengths = [spec.slots * sum(_widths(spec, number)) for number in range(len(spec.sites))]
    slots = []
    for number, part in enumerate(flat.split(lengths, dim=-1)):
        site, widths = spec.sites[number], _widths(spec, number)
        # Every latent was projected for all layers and slots at once: of one per layer, the l-th is read in
        # layer l.
        of_layer = part[:, number if part.shape[1] > 1 else 0]  # (B, 1 or slots, slots * width)
        by_slot = of_layer.reshape(*of_layer.shape[:-1], spec.slots, of_layer.shape[-1] // spec.slots)
        if by_slot.shape[1] > 1:  # a latent for each slot: the s-th one makes the s-th slot
            by_slot = by_slot.diagonal(dim1=1, dim2=2).transpose(1, 2)
        else:
            by_slot = by_slot[:, 0]
        vectors = by_slot.split(widths, dim=-1)
        dims = (site.key_dim, site.value_dim)
        heads = [  # contiguous, as every token reads them and torch concatenates nothing else fast
            vector.reshape(*vector.shape[:-1], site.heads, dim).transpose(1, 2).contiguous()
            for vector, dim in zip(vectors, dims, strict=False)
        ]
        slots.append((heads[0], heads[-1]))
    return slots
