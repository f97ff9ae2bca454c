"""Reading the states of other implementations, and writing them.

`FeatureQuantizer.from_reference` and its siblings build layers from what these functions read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import one_of
from fq_toolkit.layers.codebook.consistency import smoothed_counts
from fq_toolkit.layers.codebook.dictionary import MovingDictionary

LayerT = TypeVar("LayerT", bound=MovingDictionary)


def _find(state: Mapping[str, Tensor], prefix: str, names: tuple[str, ...], what: str) -> list[Tensor]:
    """Return the named entries under ``prefix``.

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
#: What a layer with such a dictionary is built with, unless the user says otherwise.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "released": {"preset": "fqgan"},
    "encodec": {"decay": 0.99, "commitment": 1.0},
    "lucidrains": {"preset": "lucidrains"},
}


class ReferenceDictionary(NamedTuple):
    """A dictionary of another implementation in this package's terms.

    Attributes:
        dim: channels of the features.
        codebook: ``(K, C)``.
        counts: ``(K,)``, moving counts.
        sums: ``(K, C)``, moving sums.
        options: settings of the layer that go with it.
        projections: states of ``project_in`` and ``project_out``, if there are any.
    """

    dim: int
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    options: dict[str, Any]
    projections: dict[str, dict[str, Tensor]]

    def build(self, layer_class: Callable[..., LayerT], options: dict[str, Any]) -> LayerT:
        """Build a layer with this dictionary.

        Args:
            layer_class: `FeatureQuantizer`, or a class of the user's that extends it.
            options: settings of the user's, which come before those of the reference.
        """
        layer = layer_class(self.dim, self.codebook.shape[0], **{**self.options, **options})
        layer.adopt(self.codebook, self.counts, self.sums)
        for name, values in self.projections.items():
            projection = getattr(layer, name)
            if projection is not None:
                projection.load_state_dict(values)
        return layer


def read_released(state: Mapping[str, Tensor], prefix: str, layout: str | None) -> ReferenceDictionary:
    """Read a quantizer of the PyTorch release of FQ-GAN, or after Encodec.

    Args:
        state: entries ``embed``, ``cluster_size`` and ``embed_avg``.
        prefix: what stands before these names.
        layout: "released" or "encodec", see `FeatureQuantizer.from_reference`; None to find out.

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
    if started is not None and not bool(torch.as_tensor(started).any()):
        raise ValueError(f"{prefix}inited is False: that quantizer has not started, so it has no dictionary")
    if _CODE_AXIS[fitting[0]] == 1:
        embed, sums = embed.t(), sums.t()
    return ReferenceDictionary(embed.shape[1], embed, counts, sums, _DEFAULTS[fitting[0]], {})


def _explained(layout: str, embed: Tensor, counts: Tensor, sums: Tensor) -> bool:
    """Return whether in this layout the moving sums are the codes times their counts."""
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
    """Return the weight ``(K, C)`` of an embedding: of a module, a tensor, or an entry of a state.

    Raises:
        TypeError: something else.
        ValueError: no embedding under that prefix (those that there are are listed), or a weight that is no
            matrix.
    """
    if isinstance(source, nn.Embedding):
        weight: Tensor = source.weight
    elif isinstance(source, Tensor):
        weight = source
    elif isinstance(source, Mapping):
        weight = _embedding_in(source, prefix)
    else:
        raise TypeError(f"expected an nn.Embedding, its weight or a state, got {type(source).__name__}")
    if weight.ndim != 2:
        raise ValueError(f"the weight of an embedding is (K, C), got shape {tuple(weight.shape)}")
    return weight


def _embedding_in(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    for name in ("embedding.weight", "weight"):
        if prefix + name in state:
            return state[prefix + name]
    marker = "embedding.weight"
    starts = [key[: -len(marker)] for key in state if key.endswith(marker)]
    hint = f"it has one under prefix={', '.join(map(repr, starts))}" if starts else "it has none anywhere"
    raise ValueError(f"the state has no embedding.weight and no weight under prefix={prefix!r}; {hint}")


def read_lucidrains(state: Mapping[str, Tensor], prefix: str, heads: int) -> ReferenceDictionary:
    """Read the dictionary and the projections of a ``vector_quantize_pytorch.VectorQuantize``.

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
    options = {**_DEFAULTS["lucidrains"], "heads": heads, "codebook_dim": codebook_dim}
    return ReferenceDictionary(dim, embed[0], counts[0], sums[0], options, projections)


def released_state(codebook: Tensor, counts: Tensor, sums: Tensor) -> dict[str, Tensor]:
    """Name the state of a dictionary as the released layer does; copies."""
    values = {"embed": codebook.t(), "cluster_size": counts, "embed_avg": sums.t()}
    return {name: value.detach().clone().contiguous() for name, value in values.items()}


def lucidrains_state(
    codebook: Tensor, counts: Tensor, sums: Tensor, initialized: Tensor, projections: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Name the state of a dictionary and its projections as ``VectorQuantize`` does; copies."""
    values = {
        "_codebook.initted": initialized,
        "_codebook.cluster_size": counts[None],
        "_codebook.embed_avg": sums[None],
        "_codebook.embed": codebook[None],
    }
    for name, projection in projections.items():
        if projection is not None:
            values |= {f"{name}.{key}": value for key, value in projection.state_dict().items()}
    return {name: value.detach().clone() for name, value in values.items()}
