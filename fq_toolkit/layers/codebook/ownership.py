"""A dictionary that owns its state: one checked way in, and everything derived is derived.

The state is the codebook with its moving counts and sums.  What follows from it, the center of the lookup and
whether the dictionary has started, is no buffer: loaders that skip `torch.nn.Module.load_state_dict` would
leave uninitialised memory in one.  It is derived whenever somebody else has written the codebook, which
`fq_toolkit.layers.codebook.witness` tells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.kernels import tracing
from fq_toolkit.layers.codebook import initialization
from fq_toolkit.layers.codebook.consistency import account_for, center_of, disagreeing
from fq_toolkit.layers.codebook.staging import StagedStatistics
from fq_toolkit.layers.codebook.witness import Witness, bits

_OWNED = frozenset({"codebook", "ema_counts", "ema_sums", "chosen_counts", "num_updates", "initialized"})
#: Set by the loader of transformers on what it has loaded, and on modules when it is done with them.
_LOADED_BY_TRANSFORMERS = "_is_hf_initialized"
NOT_SCRIPTABLE = (
    "a {} cannot be compiled by torch.jit.script; use torch.compile, or torch.export for evaluation elsewhere"
)


class OwnedCodebook(StagedStatistics):
    """The part of a quantizer that lets nobody change its codebook without its statistics."""

    num_codes: int
    codebook_dim: int
    decay: float
    eps: float
    ema: str
    init: str
    metric: str
    ema_counts: Tensor
    ema_sums: Tensor
    chosen_counts: Tensor
    initialized: Tensor
    center: Tensor
    nonfinite_rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.codebook_frozen = False
        self.witness = Witness()
        self._loading = False
        self._materialized = False  # buffers have been assigned to a layer on the meta device
        self._doubtful: Tensor | None = None  # codes that somebody else has written since the last update
        self._counts_given = False  # and their counts as well

    # --- the way in -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_codebook(self, codebook: Any) -> None:
        """Make these codes the dictionary, which has then started: each counts as one row seen.

        Codes, moving counts, moving sums and what is derived from them change together; statistics that wait
        for a commit are forgotten. ``num_updates`` stays. With ``metric="cosine"`` codes are scaled to unit
        length. With more than one rank, call it on each.

        Args:
            codebook: ``(K, codebook_dim)``: a tensor on any device, a NumPy array or nested lists.

        Raises:
            TypeError: not real numbers.
            ValueError: another shape, or entries that are not finite in float32.
            RuntimeError: the layer is on the meta device.

        Example:
            >>> import torch
            >>> from fq_toolkit import FeatureQuantizer
            >>> layer = FeatureQuantizer(2, 3)
            >>> layer.set_codebook([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
            >>> layer.quantize(torch.tensor([[0.9, 0.2]])).indices
            tensor([1])
        """
        if self.codebook.is_meta:
            raise RuntimeError(
                "this layer is on the meta device, where set_codebook has nothing to write to; call "
                "to_empty(device=...) first"
            )
        codes = initialization.as_codebook(
            codebook, self.num_codes, self.codebook_dim, self.metric == "cosine"
        )
        self._check_shapes()
        self._put_on_one_device()
        self.codebook.copy_(codes)
        self.ema_counts.fill_(1)
        self.ema_sums.copy_(self.codebook)
        if self.revive > 0:
            self.chosen_counts.zero_()
        self.initialized.fill_(True)
        self.forget_staged(torch.ones_like(self.ema_counts, dtype=torch.bool))
        self._trust(started=True)

    @torch.no_grad()
    def adopt(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Take over a dictionary together with its moving statistics."""
        self.codebook.copy_(codebook)
        self.ema_counts.copy_(counts)
        self.ema_sums.copy_(sums)
        if self.revive > 0:
            self.chosen_counts.copy_(counts)
        self.initialized.fill_(True)
        self.after_load()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWNED and name in self.__dict__.get("_buffers", ()) and not self._loading:
            self._assign(name, value)
            return
        if name == _LOADED_BY_TRANSFORMERS and value and self._materialized:
            self._start_what_was_not_loaded()
        super().__setattr__(name, value)

    @torch.no_grad()
    def _assign(self, name: str, value: Any) -> None:
        """Take over an assigned buffer: the values, not the tensor."""
        own: Tensor = getattr(self, name)
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            raise TypeError(
                f"{name} of a {type(self).__name__} is state that moving averages keep, not a "
                f"{type(value).__name__}; to give it a dictionary call set_codebook(codes)"
            )
        if tuple(value.shape) != tuple(own.shape) or value.is_complex() or value.layout != torch.strided:
            raise ValueError(
                f"{name} of this {type(self).__name__} has shape {tuple(own.shape)}, but was assigned "
                f"{tuple(value.shape)} of {value.dtype}; set_codebook takes ({self.num_codes}, "
                f"{self.codebook_dim}) real numbers"
            )
        if own.is_meta or value.is_meta:  # a loader fills a model that was built without memory
            self._materialized = True
            super().__setattr__(name, value)
        elif name == "codebook" and self._replaces_codes(value):
            self.set_codebook(value)
        else:
            own.copy_(value)
            self._start_known(False)

    def _replaces_codes(self, codebook: Tensor) -> bool:
        """Whether the moving statistics do not belong to this codebook."""
        codes = codebook.detach().to(self.codebook)
        if not bool((self.ema_counts > 0).any()):
            return not torch.equal(codes, self.codebook)
        return bool(self._disagreeing(codes).any()) or not bool(torch.isfinite(codes).all())

    def _start_what_was_not_loaded(self) -> None:
        """Transformers is done with this module; what it did not find is uninitialised memory."""
        self._materialized = False
        if self.codebook.is_meta:
            return
        owned = _OWNED & self._buffers.keys()
        loaded = {name for name in owned if getattr(getattr(self, name), _LOADED_BY_TRANSFORMERS, False)}
        if "codebook" not in loaded:
            self.reset_parameters()
            return
        for name in owned - loaded:
            getattr(self, name).zero_()
        if not {"ema_counts", "ema_sums"} <= loaded:
            self.set_codebook(self.codebook)
            return
        if self.revive > 0 and "chosen_counts" not in loaded:
            self.chosen_counts.copy_(self.ema_counts)
        self.after_load()

    def reset_parameters(self) -> None:
        """Start afresh."""
        raise NotImplementedError

    # --- what somebody else has written ---------------------------------------------------------------------

    def notice_writes(self, learning: bool) -> None:
        """Bring everything in line with a codebook that somebody else has written; a lookup asks first.

        Args:
            learning: whether this forward may change the dictionary. Only then are the statistics of codes
                that they do not account for replaced: until then the codes may be somebody's for one call.

        Raises:
            RuntimeError: what was put in place of the state is no state of this layer.
        """
        if torch.compiler.is_compiling():
            if learning:
                self._compare_on_device()
            return
        codebook = self._buffers.get("codebook")
        if codebook is None or not self.witness.knows(codebook):
            self._look_closer(learning)
        if learning and self._doubtful is not None:
            doubtful, keep = self._doubtful, self._counts_given
            self._doubtful, self._counts_given = None, False
            self._account_for(doubtful, keep, may_be_blank=keep or self.init in initialization.FROM_DATA)
            self._record(content=self.witness.compares(self.codebook))

    @torch.no_grad()
    def _look_closer(self, learning: bool) -> None:
        self._check_shapes()
        if self.codebook.is_meta:
            return
        own = self.witness
        if self.codebook.dtype == torch.float32 and self.codebook.device == self.center.device:
            if own.compares(self.codebook) and own.same_bits(self.codebook):
                self._record(content=False)
                return
            if own.all_written(self.codebook, self.ema_counts, self.ema_sums):
                # The statistics came along. DistributedDataParallel does so before every forward; in
                # training the center follows by itself.
                self._doubtful, self._counts_given = None, False
                if not learning:
                    self.derive_center()
                    self._start_known(False)
                self._record(content=own.compares(self.codebook))
                return
        given = own.counts_written(self.ema_counts)
        self._put_on_one_device()
        changed = own.changed_rows(self.codebook)
        before = self._doubtful
        self._doubtful = changed if before is None or before.device != changed.device else before | changed
        self._counts_given |= given
        self._start_known(False)
        self.derive_center()
        self._record(content=True)

    def _check_shapes(self) -> None:
        """Refuse a state that is none: native code would read beyond it."""
        shapes = {
            "codebook": (self.num_codes, self.codebook_dim),
            "ema_counts": (self.num_codes,),
            "ema_sums": (self.num_codes, self.codebook_dim),
            "num_updates": (),
            "initialized": (),
        }
        if self.revive > 0:
            shapes["chosen_counts"] = (self.num_codes,)
        for name, shape in shapes.items():
            value = getattr(self, name, None)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.is_complex():
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise RuntimeError(
                    f"{name} of this {type(self).__name__} was replaced by {found}, expected shape {shape}; "
                    "set_codebook(codes) gives it another dictionary of the same size, and another size "
                    "needs another layer"
                )

    def _put_on_one_device(self) -> None:
        """Bring the state to where the codebook is, float32 and contiguous, as the kernels need it."""
        self.keep_float32()
        device = self.codebook.device
        missing = self.ema_counts.is_meta or self.ema_sums.is_meta
        for name in sorted(_OWNED):
            held = self._buffers.get(name)
            if held is None:
                continue
            if held.is_meta and not device.type == "meta":
                held = torch.zeros(held.shape, dtype=held.dtype, device=device)
            self._buffers[name] = held.to(device).contiguous()
        if missing and device.type != "meta":  # a codebook came without statistics
            self.ema_counts.fill_(1)
            self.ema_sums.copy_(self.codebook)
            self.initialized.fill_(True)
        if self.center.device != device:
            self.center = self.codebook.new_zeros(self.codebook_dim)
        if self.nonfinite_rows.device != device:
            held = self.nonfinite_rows
            self.nonfinite_rows = torch.zeros_like(held, device=device) if held.is_meta else held.to(device)

    def derive_center(self) -> None:
        """The center of a codebook that did not come from updates."""
        self.center.copy_(center_of(self.codebook, self.ema_counts))

    def usable_center(self) -> Tensor:
        """The center for this lookup.

        A traced graph cannot ask whether the one that is kept fits, so unless it trains it derives one; so
        does a transform, whose codebook may be another for every sample.
        """
        if torch.compiler.is_compiling() or tracing.under_export():
            fits = self.training and self.center.device == self.codebook.device and not tracing.under_export()
        else:
            fits = not tracing.under_transform()
        return self.center if fits else center_of(self.codebook)

    def written(self) -> None:
        """The layer has just written its state itself."""
        if not torch.compiler.is_compiling():
            self._record(content=self.witness.compares(self.codebook))
        elif self.witness.copy is not None:
            self.witness.copy.copy_(bits(self.codebook))

    def _record(self, content: bool) -> None:
        self.witness.record(self.codebook, self.ema_counts, self.ema_sums, content=content)

    def debiasing_scale(self) -> Tensor | float:
        """What the moving statistics are multiplied by before they are compared or divided."""
        if self.ema != "debiased":
            return 1.0
        steps = self.num_updates.float()
        return torch.where(steps > 0, 1 / (1 - self.decay**steps), 1.0)

    def _disagreeing(self, codebook: Tensor, may_be_blank: bool = True) -> Tensor:
        unit = self.metric == "cosine"
        return disagreeing(
            codebook, self.ema_counts, self.ema_sums, self.eps, self.debiasing_scale(), unit, may_be_blank
        )

    @torch.no_grad()
    def _account_for(self, rows: Tensor, keep: bool, may_be_blank: bool = True) -> None:
        """Give those of the codes that their statistics do not account for statistics that do."""
        if self.metric == "cosine":
            off = (self.codebook.norm(dim=1) - 1).abs() > 1e-5
            unit = F.normalize(self.codebook, dim=1)
            self.codebook.copy_(torch.where((rows & off)[:, None], unit, self.codebook))
        rows = rows & self._disagreeing(self.codebook, may_be_blank)
        counts, sums = account_for(
            self.codebook, self.ema_counts, self.ema_sums, rows, keep, self.eps, self.debiasing_scale()
        )
        self.ema_counts.copy_(counts)
        self.ema_sums.copy_(sums)
        if self.revive > 0 and not keep:
            self.chosen_counts.masked_fill_(rows, 0.0)
        self.forget_staged(rows)

    def _compare_on_device(self) -> None:
        """In a compiled graph: what was written since the layer last wrote gets statistics of its own."""
        if self.codebook.dtype != torch.float32:
            self.keep_float32()
        copy = self.witness.copy
        if copy is not None and copy.device == self.codebook.device:
            self._account_for(self.witness.changed_rows(self.codebook), False)

    def _trust(self, started: bool) -> None:
        """The whole state is as it should be: derive what follows from it."""
        self._doubtful, self._counts_given, self._materialized = None, False, False
        self.derive_center()
        self._start_known(started)
        self._record(content=True)

    # --- whether it has started -----------------------------------------------------------------------------

    def has_started(self) -> bool:
        """Whether the dictionary comes from data or from somebody; waits for the device.

        The moving counts tell as well as the flag: averages of models may copy floats alone.
        """
        return bool(self.initialized) or bool((self.ema_counts > 0).any())

    def is_given(self) -> bool:
        """Whether a dictionary that would start from data has been given codes instead; asks only once."""
        if self.memory.given is None:
            self.memory.given = initialization.is_given(self.codebook, self.metric == "cosine")
        return self.memory.given

    def _start_known(self, started: bool) -> None:
        """Note on the host what is known without asking the device."""
        self.memory.started = started or self.init not in initialization.FROM_DATA
        self.memory.given = None

    # --- loading and moving ---------------------------------------------------------------------------------

    @torch.no_grad()
    def after_load(self) -> None:
        """Bring what is not saved in line with what was loaded."""
        if self.codebook.is_meta:
            return
        self._check_shapes()
        self._put_on_one_device()
        self.nonfinite_rows.zero_()
        if self.staging:
            self.make_room_to_stage()
        self.clear_staged()
        self.memory.commits_now.fill_(int(self.num_updates))
        started = self.has_started()
        self.initialized.fill_(started)
        self._trust(started)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._loading = True
        try:
            super()._load_from_state_dict(*args)
        finally:
            self._loading = False
        if not self.codebook.is_meta:
            # Loaded as it was saved; but an edited or averaged state need not agree with itself, which the
            # next training forward looks at.
            self._doubtful = torch.ones_like(self.ema_counts, dtype=torch.bool)
            self._counts_given = True
            self.witness.forget_content()

    def _apply(self, fn: Any, recurse: bool = True) -> OwnedCodebook:
        """Follow the model to another device."""
        known = self.witness.knows(self.codebook) and not self.codebook.is_meta
        super()._apply(fn, recurse)
        if known and not self.codebook.is_meta:
            self.center = self.center.to(self.codebook.device)
            self.nonfinite_rows = self.nonfinite_rows.to(self.codebook.device)
            self._record(content=False)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.codebook.is_meta and self.codebook.dtype == torch.float32:
            self._record(content=False)

    def __prepare_scriptable__(self) -> OwnedCodebook:
        raise TypeError(NOT_SCRIPTABLE.format(type(self).__name__))

    # --- holding still --------------------------------------------------------------------------------------

    def freeze_codebook(self) -> None:
        """Hold the dictionary still for good: unlike ``eval()``, this survives the next ``train()``.

        Features are still quantized and the commitment loss still pulls them towards their codes. Statistics
        that wait for a commit are forgotten. Not part of ``state_dict()``.
        """
        self.codebook_frozen = True
        self.clear_staged()

    def unfreeze_codebook(self) -> None:
        """Let the dictionary move again; the opposite of `freeze_codebook`."""
        self.codebook_frozen = False

    def requires_grad_(self, requires_grad: bool = True) -> OwnedCodebook:
        """As in `torch.nn.Module`, and False freezes the dictionary too, True lets it move again.

        Only called on the layer itself: ``requires_grad_`` of a model around it visits parameters alone.
        """
        super().requires_grad_(requires_grad)
        if requires_grad:
            self.unfreeze_codebook()
        else:
            self.freeze_codebook()
        return self
