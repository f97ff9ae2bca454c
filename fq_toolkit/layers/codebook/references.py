"""Reading the states of other implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import one_of
from fq_toolkit.layers.codebook.consistency import smoothed_counts
from fq_toolkit.layers.codebook.dictionary import MovingDictionary

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


#: Which axis of ``embed`` counts the codes.
_CODE_AXIS = {"released": 1, "encodec": 0}


def moving_average_state(
    state: Mapping[str, Tensor], prefix: str, layout: str | None
) -> tuple[str, Tensor, Tensor, Tensor]:
    """Layout, codebook ``(K, C)``, moving counts ``(K,)`` and moving sums ``(K, C)`` of a quantizer.

    Args:
        state: entries ``embed``, ``cluster_size`` and ``embed_avg``.
        prefix: what stands before these names.
        layout: "released" or "encodec", see `ReferenceStates.from_reference`; None to find out.

    Raises:
        ValueError: no such quantizer, entries whose shapes do not belong together, a square ``embed`` that
            may be either, or a quantizer that has not started.
    """
    names = ("embed", "cluster_size", "embed_avg")
    embed, counts, sums = _find(state, prefix, names, "quantizer with moving averages")
    shapes = ", ".join(f"{name} {tuple(state[prefix + name].shape)}" for name in names)
    if embed.ndim != 2 or sums.shape != embed.shape or counts.ndim != 1:
        raise ValueError(
            "expected embed (C, K) or (K, C), cluster_size (K,) and embed_avg like embed under "
            f"{prefix!r}, got {shapes}"
        )
    fitting = [name for name, axis in _CODE_AXIS.items() if counts.shape[0] == embed.shape[axis]]
    started = state.get(prefix + "inited")
    if layout is not None:
        one_of("layout", layout, tuple(_CODE_AXIS))
        fitting = [name for name in fitting if name == layout]
    elif started is not None:  # only quantizers after Encodec have it
        fitting = [name for name in fitting if name == "encodec"]
    elif fitting != ["released"]:
        explained = [name for name in fitting if _explained(name, embed, counts, sums)]
        if len(fitting) == 2 and len(explained) != 1:
            raise ValueError(
                f"embed under {prefix!r} is square, {tuple(embed.shape)}, and its statistics do not tell "
                'which axis counts the codes; pass layout="released" for (C, K) or layout="encodec" for '
                "(K, C)"
            )
        fitting = explained
    if not fitting:
        raise ValueError(
            'expected embed (C, K), or (K, C) with layout="encodec", cluster_size (K,) and embed_avg like '
            f"embed under {prefix!r}, got {shapes}"
        )
    found = fitting[0]
    if started is not None and not bool(torch.as_tensor(started).any()):
        raise ValueError(f"{prefix}inited is False: that quantizer has not started, so it has no dictionary")
    return (found, embed.t(), counts, sums.t()) if found == "released" else (found, embed, counts, sums)


def _explained(layout: str, embed: Tensor, counts: Tensor, sums: Tensor) -> bool:
    """Whether in this layout the moving sums are the codes times their counts."""
    counts = counts.float()
    codes, moving = embed.float(), sums.float()
    if _CODE_AXIS[layout] == 1:
        codes, moving = codes.t(), moving.t()
    scale = moving.abs().amax(dim=1).clamp(min=1e-30)
    misses = [
        (codes * count[:, None] - moving).abs().amax(dim=1) / scale
        for count in (counts, smoothed_counts(counts, 1e-5))
    ]
    return bool(counts.sum() > 0) and bool((torch.minimum(*misses) < 0.01).float().mean() > 0.9)


def embedding_weight(source: Any, prefix: str) -> Tensor:
    """The weight ``(K, C)`` of an embedding: of a module, a tensor, or an entry of a state.

    Raises:
        TypeError: something else.
        ValueError: no embedding under that prefix; those that there are are listed.
    """
    if isinstance(source, nn.Embedding):
        return source.weight
    if isinstance(source, Tensor):
        return source
    if not isinstance(source, Mapping):
        raise TypeError(f"expected an nn.Embedding, its weight or a state, got {type(source).__name__}")
    for name in ("embedding.weight", "weight"):
        if prefix + name in source:
            return source[prefix + name]
    marker = "embedding.weight"
    found = [key[: -len(marker)] for key in source if key.endswith(marker)]
    hint = f"it has one under prefix={', '.join(map(repr, found))}" if found else "it has none anywhere"
    raise ValueError(f"the state has no embedding.weight and no weight under prefix={prefix!r}; {hint}")


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
    if not bool(state.get(prefix + "_codebook.initted", torch.tensor(True)).any()):
        raise ValueError(f"{prefix}_codebook.initted is False: that quantizer has not started")
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
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], prefix: str = "", *, layout: str | None = None, **options: Any
    ) -> Self:
        """A layer with the dictionary of a quantizer from the PyTorch release of FQ-GAN, or after Encodec.

        Args:
            state_dict: a state that contains ``embed``, ``cluster_size`` (K,) and ``embed_avg`` like
                ``embed``.
            prefix: what stands before these names, such as ``"blocks.0.1."``.
            layout: "released" for ``embed`` (C, K), as in FQ-GAN; "encodec" for (K, C), as in Encodec and
                what follows it; None to find out from the shapes and, with K = C, from the statistics.
            **options: settings of `FeatureQuantizer`; by default those of ``preset="fqgan"``, or for
                "encodec" ``decay=0.99`` and ``commitment=1.0``. (Encodec also restarts codes:
                ``revive=2.0, revive_by="count"``.)

        Raises:
            ValueError: no such quantizer under that prefix (prefixes that have one are listed), or one whose
                layout cannot be told.
        """
        found, codebook, counts, sums = moving_average_state(state_dict, prefix, layout)
        defaults: dict[str, Any] = {"preset": "fqgan"}
        if found == "encodec":
            defaults = {"decay": 0.99, "commitment": 1.0}
        layer = cls(codebook.shape[1], codebook.shape[0], **{**defaults, **options})
        layer.adopt(codebook, counts, sums)
        return layer

    @classmethod
    def from_encodec(cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any) -> Self:
        """A layer with the dictionary of a quantizer of Encodec: `from_reference` with its layout.

        Args:
            state_dict: a state that contains ``embed`` (K, C), ``cluster_size`` (K,) and ``embed_avg`` (K,
                C).
            prefix: what stands before these names, such as ``"quantizer.layers.0.codebook."``.
            **options: settings of `FeatureQuantizer`.

        Raises:
            ValueError: as `from_reference`.
        """
        return cls.from_reference(state_dict, prefix, layout="encodec", **options)

    @classmethod
    def from_embedding(
        cls, source: nn.Embedding | Tensor | Mapping[str, Tensor], prefix: str = "", **options: Any
    ) -> Self:
        """A layer with the dictionary of a quantizer that keeps it in an ``nn.Embedding``, as VQGAN does.

        Its codes were trained by gradients and have no moving statistics: each counts as one row seen, as
        after `set_codebook`.

        Args:
            source: the embedding, its weight ``(K, C)``, or a state with ``embedding.weight``.
            prefix: what stands before that name in a state, such as ``"quantize."``.
            **options: settings of `FeatureQuantizer`; ``metric="cosine"`` where the original normalizes
                codes, as LlamaGen does.

        Raises:
            TypeError: another kind of source.
            ValueError: no embedding under that prefix, or a weight that is no dictionary.
        """
        weight = embedding_weight(source, prefix)
        if weight.ndim != 2:
            raise ValueError(f"the weight of an embedding is (K, C), got shape {tuple(weight.shape)}")
        num_codes, channels = weight.shape
        return cls(channels * options.get("heads", 1), num_codes, **{**options, "init": weight})

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
