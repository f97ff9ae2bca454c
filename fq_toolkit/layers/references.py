"""Reading the states of other implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from fq_toolkit.layers.dictionary import MovingDictionary

if TYPE_CHECKING:
    from typing_extensions import Self


def _find(state: Mapping[str, Tensor], prefix: str, names: tuple[str, ...], what: str) -> list[Tensor]:
    """The named entries under ``prefix``.

    Raises:
        ValueError: one is missing; the prefixes under which all are present are listed.
    """
    if all(prefix + name in state for name in names):
        return [state[prefix + name] for name in names]
    marker = names[0]
    candidates = [key[: -len(marker)] for key in state if key.endswith(marker)]
    candidates = [start for start in candidates if all(start + name in state for name in names)]
    hint = (
        f"it has one under prefix={', '.join(map(repr, candidates))}"
        if candidates
        else "it has none anywhere"
    )
    raise ValueError(f"the state has no {what} ({', '.join(names)}) under prefix={prefix!r}; {hint}")


def released_state(state: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codebook ``(K, C)``, moving counts ``(K,)`` and moving sums ``(K, C)`` of a released quantizer.

    Raises:
        ValueError: no such quantizer, or entries whose shapes do not belong together.
    """
    names = ("embed", "cluster_size", "embed_avg")
    embed, counts, sums = _find(state, prefix, names, "released FQ layer")
    if embed.ndim != 2 or sums.shape != embed.shape or counts.shape != embed.shape[1:]:
        shapes = ", ".join(f"{name} {tuple(state[prefix + name].shape)}" for name in names)
        raise ValueError(
            f"expected embed (C, K), cluster_size (K,) and embed_avg (C, K) under {prefix!r}, got {shapes}"
        )
    return embed.t(), counts, sums.t()


class LucidrainsState(NamedTuple):
    """A ``VectorQuantize`` in this package's terms."""

    dim: int
    heads: int
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    projections: dict[str, dict[str, Tensor]]


def lucidrains_state(state: Mapping[str, Tensor], prefix: str, heads: int) -> LucidrainsState:
    """The dictionary and the projections of a ``vector_quantize_pytorch.VectorQuantize``.

    Args:
        state: its state.
        prefix: what stands before ``_codebook.embed``.
        heads: the number of heads, which the state tells only if there is a projection.

    Raises:
        ValueError: no such quantizer, or one that does what this package does not.
    """
    names = ("_codebook.embed", "_codebook.cluster_size", "_codebook.embed_avg")
    embed, counts, sums = _find(state, prefix, names, "VectorQuantize")
    if embed.ndim != 3 or embed.shape[0] != 1:
        raise ValueError(
            f"{prefix}_codebook.embed has shape {tuple(embed.shape)}; only one codebook, "
            "(1, K, dim), can be loaded"
        )
    refused = ("_codebook.codebook_mean", "project_in.1.weight")
    for name in refused:
        if prefix + name in state:
            raise ValueError(f"{prefix}{name}: affine parameters and normalized projections cannot be loaded")
    codebook_dim = embed.shape[2]
    dim = codebook_dim * heads
    projections: dict[str, dict[str, Tensor]] = {}
    if prefix + "project_in.weight" in state:
        for name in ("project_in", "project_out"):
            projections[name] = {key: state[f"{prefix}{name}.{key}"] for key in ("weight", "bias")}
        inner, dim = projections["project_in"]["weight"].shape
        heads = inner // codebook_dim
    return LucidrainsState(dim, heads, embed[0], counts[0], sums[0], projections)


class ReferenceStates(MovingDictionary):
    """The part of a quantizer that speaks to other implementations."""

    project_in: nn.Linear | None
    project_out: nn.Linear | None

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any) -> Self:
        """A layer with the dictionary of a quantizer from the PyTorch release of FQ-GAN.

        Args:
            state_dict: a state that contains ``embed`` (C, K), ``cluster_size`` (K,) and ``embed_avg`` (C,
                K).
            prefix: what stands before these names, such as ``"blocks.0.1."``.
            **options: settings of `FeatureQuantizer`; by default those of ``preset="fqgan"``.

        Raises:
            ValueError: no such quantizer under that prefix; prefixes that have one are listed.
        """
        codebook, counts, sums = released_state(state_dict, prefix)
        layer = cls(codebook.shape[1], codebook.shape[0], **{"preset": "fqgan", **options})
        layer.adopt(codebook, counts, sums)
        return layer

    def to_reference(self, prefix: str = "") -> dict[str, Tensor]:
        """The dictionary as a state of the released layer; the opposite of `from_reference`.

        Args:
            prefix: put before every name.
        """
        values = {"embed": self.codebook.t(), "cluster_size": self.ema_counts, "embed_avg": self.ema_sums.t()}
        return {prefix + name: value.detach().clone().contiguous() for name, value in values.items()}

    @classmethod
    def from_lucidrains(cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any) -> Self:
        """A layer with the dictionary and the projections of a ``vector_quantize_pytorch.VectorQuantize``.

        Args:
            state_dict: its state.
            prefix: what stands before ``_codebook.embed``.
            **options: settings of `FeatureQuantizer`, where the state cannot tell them (``heads``,
                ``metric``, ``revive``, ``decay``); by default those of ``preset="lucidrains"``.

        Raises:
            ValueError: no such quantizer under that prefix, or one with several codebooks, affine parameters
                or a normalized projection.
        """
        found = lucidrains_state(state_dict, prefix, options.pop("heads", 1))
        settings = {
            "preset": "lucidrains",
            "heads": found.heads,
            "codebook_dim": found.codebook.shape[1],
            **options,
        }
        layer = cls(found.dim, found.codebook.shape[0], **settings)
        layer.adopt(found.codebook, found.counts, found.sums)
        for name, values in found.projections.items():
            projection = getattr(layer, name)
            if projection is not None:
                projection.load_state_dict(values)
        return layer

    def to_lucidrains(self, prefix: str = "") -> dict[str, Tensor]:
        """The dictionary as a state of ``VectorQuantize``; the opposite of `from_lucidrains`.

        Args:
            prefix: put before every name.
        """
        values = {
            "_codebook.initted": self.initialized,
            "_codebook.cluster_size": self.ema_counts[None],
            "_codebook.embed_avg": self.ema_sums[None],
            "_codebook.embed": self.codebook[None],
        }
        for name in ("project_in", "project_out"):
            projection = getattr(self, name)
            if projection is not None:
                values |= {f"{name}.{key}": value for key, value in projection.state_dict().items()}
        return {prefix + name: value.detach().clone() for name, value in values.items()}
