"""The state of a dictionary has one owner: what others write into it is checked, and what follows derived.

The state is the codebook with its moving counts and sums.  What follows from it, the center of the lookup and
whether the dictionary has started, is no buffer: loaders that skip `torch.nn.Module.load_state_dict` would
leave uninitialised memory in one.  It is derived whenever somebody else has written the codebook, which
`fq_toolkit.layers.codebook.witness` tells.

These are functions over a layer, so that the layer itself reads as what a dictionary does.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.layers.codebook import initialization
from fq_toolkit.layers.codebook.consistency import account_for, center_of, disagreeing
from fq_toolkit.layers.codebook.staging import Staging
from fq_toolkit.layers.codebook.state import keep_float32
from fq_toolkit.layers.codebook.statistics import HostState
from fq_toolkit.layers.codebook.witness import Witness, bits

#: The buffers that only the layer itself may replace.
OWNED = frozenset({"codebook", "ema_counts", "ema_sums", "chosen_counts", "num_updates", "initialized"})
#: Set by the loader of transformers on what it has loaded, and on modules when it is done with them.
LOADED_BY_TRANSFORMERS = "_is_hf_initialized"


class OwnedState(Protocol):
    """What these functions need of a layer; `MovingDictionary` documents it."""

    num_codes: int
    codebook_dim: int
    decay: float
    eps: float
    ema: str
    init: str
    metric: str
    revive: float
    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    chosen_counts: Tensor
    num_updates: Tensor
    initialized: Tensor
    center: Tensor
    nonfinite_rows: Tensor
    witness: Witness
    host: HostState
    staged: Staging
    _buffers: dict[str, Tensor | None]

    def set_codebook(self, codebook: Any) -> None:
        """Make these codes the dictionary."""

    def reset_parameters(self) -> None:
        """Start afresh."""

    def after_load(self) -> None:
        """Bring what is not saved in line with what was loaded."""


# --- assignments --------------------------------------------------------------------------------------------


@torch.no_grad()
def take_over(layer: OwnedState, name: str, value: Any) -> bool:
    """Take over an assigned buffer: the values, not the tensor.

    Returns:
        Whether that is done.  Without memory there are no values to copy: then the caller binds the tensor,
        which is how a loader fills a model that was built on the meta device.

    Raises:
        TypeError: not a plain tensor.
        ValueError: another shape, or no real numbers.
    """
    own: Tensor = getattr(layer, name)
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        raise TypeError(
            f"{name} of a {type(layer).__name__} is state that moving averages keep, not a "
            f"{type(value).__name__}; to give it a dictionary call set_codebook(codes)"
        )
    if tuple(value.shape) != tuple(own.shape) or value.is_complex() or value.layout != torch.strided:
        raise ValueError(
            f"{name} of this {type(layer).__name__} has shape {tuple(own.shape)}, but was assigned "
            f"{tuple(value.shape)} of {value.dtype}; set_codebook takes ({layer.num_codes}, "
            f"{layer.codebook_dim}) real numbers"
        )
    if own.is_meta or value.is_meta:
        layer.witness.materialized = True
        return False
    if name == "codebook" and _replaces_codes(layer, value):
        layer.set_codebook(value)
    else:
        # Not trusted: the rest of the state may be assigned next, and the next lookup compares it all.
        own.copy_(value)
        start_known(layer, False)
    return True


def _replaces_codes(layer: OwnedState, codebook: Tensor) -> bool:
    """Return whether the moving statistics do not belong to this codebook."""
    codes = codebook.detach().to(layer.codebook)
    if not bool((layer.ema_counts > 0).any()):
        return not torch.equal(codes, layer.codebook)
    return bool(_disagreeing(layer, codes).any()) or not bool(torch.isfinite(codes).all())


def start_what_was_not_loaded(layer: OwnedState) -> None:
    """Finish a load by transformers: what it did not find is uninitialised memory."""
    layer.witness.materialized = False
    if layer.codebook.is_meta:
        return
    owned = OWNED & layer._buffers.keys()
    loaded = {name for name in owned if getattr(getattr(layer, name), LOADED_BY_TRANSFORMERS, False)}
    if "codebook" not in loaded:
        layer.reset_parameters()
        return
    for name in owned - loaded:
        getattr(layer, name).zero_()
    if not {"ema_counts", "ema_sums"} <= loaded:
        layer.set_codebook(layer.codebook)
        return
    if layer.revive > 0 and "chosen_counts" not in loaded:
        layer.chosen_counts.copy_(layer.ema_counts)
    layer.after_load()


# --- what somebody else has written -------------------------------------------------------------------------


def notice_writes(layer: OwnedState, learning: bool) -> None:
    """Bring everything in line with a codebook that somebody else has written; a lookup asks first.

    Args:
        layer: the layer.
        learning: whether this forward may change the dictionary. Only then are the statistics of codes that
            they do not account for replaced: until then the codes may be somebody's for one call.

    Raises:
        RuntimeError: what was put in place of the state is no state of this layer.
    """
    if torch.compiler.is_compiling():
        # A graph cannot ask the host who wrote; it compares bits on the device. Evaluation derives what it
        # needs, see `usable_center`.
        if learning:
            _compare_on_device(layer)
        return
    witness, codebook = layer.witness, layer._buffers.get("codebook")
    if codebook is None or not witness.knows(codebook):
        _look_closer(layer, learning)
    if learning and witness.doubtful is not None:
        doubtful, keep = witness.doubtful, witness.counts_given
        witness.dismiss_doubts()
        _account_for(layer, doubtful, keep, may_be_blank=keep or layer.init in initialization.FROM_DATA)
        record(layer, content=witness.compares(layer.codebook))


@torch.no_grad()
def _look_closer(layer: OwnedState, learning: bool) -> None:
    """Find out what was written, and doubt the statistics of those codes; cheap answers come first."""
    check_shapes(layer)  # before any kernel gets a pointer to it
    if layer.codebook.is_meta:
        return
    own = layer.witness
    if layer.codebook.dtype == torch.float32 and layer.codebook.device == layer.center.device:
        if own.compares(layer.codebook) and own.same_bits(layer.codebook):
            record(layer, content=False)  # moved or written with the same values
            return
        if own.all_written(layer.codebook, layer.ema_counts, layer.ema_sums):
            # The statistics came along. DistributedDataParallel does so before every forward; in training the
            # center follows by itself.
            own.dismiss_doubts()
            if not learning:
                derive_center(layer)
                start_known(layer, False)
            record(layer, content=own.compares(layer.codebook))
            return
    given = own.counts_written(layer.ema_counts)
    put_on_one_device(layer)
    own.doubt(own.changed_rows(layer.codebook), given)
    start_known(layer, False)
    derive_center(layer)
    record(layer, content=True)


def _compare_on_device(layer: Any) -> None:
    """Give what was written since the layer last wrote statistics of its own, in a compiled graph."""
    if layer.codebook.dtype != torch.float32:
        keep_float32(layer)
    copy = layer.witness.copy
    if copy is not None and copy.device == layer.codebook.device:
        _account_for(layer, layer.witness.changed_rows(layer.codebook), False)


@torch.no_grad()
def _account_for(layer: OwnedState, rows: Tensor, keep: bool, may_be_blank: bool = True) -> None:
    """Give those of the codes that their statistics do not account for statistics that do."""
    if layer.metric == "cosine":
        # Only codes that are visibly off: normalizing a unit vector again would change its last bits.
        off = (layer.codebook.norm(dim=1) - 1).abs() > 1e-5
        unit = F.normalize(layer.codebook, dim=1)
        layer.codebook.copy_(torch.where((rows & off)[:, None], unit, layer.codebook))
    rows = rows & _disagreeing(layer, layer.codebook, may_be_blank)
    counts, sums = account_for(
        layer.codebook, layer.ema_counts, layer.ema_sums, rows, keep, layer.eps, debiasing_scale(layer)
    )
    layer.ema_counts.copy_(counts)
    layer.ema_sums.copy_(sums)
    if layer.revive > 0 and not keep:
        layer.chosen_counts.masked_fill_(rows, 0.0)
    layer.staged.forget(rows)


def _disagreeing(layer: OwnedState, codebook: Tensor, may_be_blank: bool = True) -> Tensor:
    unit = layer.metric == "cosine"
    return disagreeing(
        codebook, layer.ema_counts, layer.ema_sums, layer.eps, debiasing_scale(layer), unit, may_be_blank
    )


def debiasing_scale(layer: OwnedState) -> Tensor | float:
    r"""Return what the moving statistics are multiplied by before they are compared or divided.

    With ``ema="debiased"`` that is :math:`1 / (1 - \lambda^t)` after ``t`` updates, as they start at zero.
    """
    if layer.ema != "debiased":
        return 1.0
    steps = layer.num_updates.float()
    return torch.where(steps > 0, 1 / (1 - layer.decay**steps), 1.0)


# --- bringing the state in order ----------------------------------------------------------------------------


def check_shapes(layer: OwnedState) -> None:
    """Refuse a state that is none: native code would read beyond it."""
    shapes = {
        "codebook": (layer.num_codes, layer.codebook_dim),
        "ema_counts": (layer.num_codes,),
        "ema_sums": (layer.num_codes, layer.codebook_dim),
        "num_updates": (),
        "initialized": (),
    }
    if layer.revive > 0:
        shapes["chosen_counts"] = (layer.num_codes,)
    for name, shape in shapes.items():
        value = getattr(layer, name, None)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.is_complex():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RuntimeError(
                f"{name} of this {type(layer).__name__} was replaced by {given}, expected shape {shape}; "
                "set_codebook(codes) gives it another dictionary of the same size, and another size "
                "needs another layer"
            )


def put_on_one_device(layer: Any) -> None:
    """Bring the state to where the codebook is, float32 and contiguous, as the kernels need it."""
    keep_float32(layer)
    device = layer.codebook.device
    missing = layer.ema_counts.is_meta or layer.ema_sums.is_meta
    for name in sorted(OWNED):
        held = layer._buffers.get(name)
        if held is None:
            continue
        if held.is_meta and not device.type == "meta":
            held = torch.zeros(held.shape, dtype=held.dtype, device=device)
        layer._buffers[name] = held.to(device).contiguous()
    if missing and device.type != "meta":  # a codebook came without statistics
        layer.ema_counts.fill_(1)
        layer.ema_sums.copy_(layer.codebook)
        layer.initialized.fill_(True)
    if layer.center.device != device:
        layer.center = layer.codebook.new_zeros(layer.codebook_dim)
    if layer.nonfinite_rows.device != device:
        held = layer.nonfinite_rows
        layer.nonfinite_rows = torch.zeros_like(held, device=device) if held.is_meta else held.to(device)


def derive_center(layer: OwnedState) -> None:
    """Compute the center of a codebook that did not come from updates."""
    layer.center.copy_(center_of(layer.codebook, layer.ema_counts))


def usable_center(layer: Any, exporting: bool, transformed: bool) -> Tensor:
    """Return the center for this lookup.

    A traced graph cannot ask whether the one that is kept fits, so unless it trains it derives one; so does a
    transform, whose codebook may be another for every sample.

    Args:
        layer: the layer.
        exporting: whether `torch.export` traces this forward.
        transformed: whether it runs inside a transform of `torch.func`.
    """
    if exporting:
        fits = False
    elif torch.compiler.is_compiling():
        fits = layer.training and layer.center.device == layer.codebook.device
    else:
        fits = not transformed
    return layer.center if fits else center_of(layer.codebook)


def trust(layer: OwnedState, started: bool) -> None:
    """Take the whole state for what it should be, and derive what follows from it."""
    layer.witness.dismiss_doubts()
    layer.witness.materialized = False
    derive_center(layer)
    start_known(layer, started)
    record(layer, content=True)


def written(layer: OwnedState) -> None:
    """Note that the layer has just written its state itself."""
    if not torch.compiler.is_compiling():
        record(layer, content=layer.witness.compares(layer.codebook))
    elif layer.witness.copy is not None:
        layer.witness.copy.copy_(bits(layer.codebook))


def record(layer: OwnedState, content: bool) -> None:
    """Let the witness know the state as it is, see `Witness.record`."""
    layer.witness.record(layer.codebook, layer.ema_counts, layer.ema_sums, content=content)


# --- whether it has started ---------------------------------------------------------------------------------


def is_given(layer: OwnedState) -> bool:
    """Return whether a dictionary that would start from data has been given codes; look only once."""
    if layer.host.given is None:
        layer.host.given = initialization.is_given(layer.codebook, layer.metric == "cosine")
    return layer.host.given


def start_known(layer: OwnedState, started: bool) -> None:
    """Note on the host what is known without asking the device."""
    layer.host.started = started or layer.init not in initialization.FROM_DATA
    layer.host.given = None
