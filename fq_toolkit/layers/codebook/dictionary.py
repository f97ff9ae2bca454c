"""The dictionary of a quantizer: its state, the ways in, and what it reports of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.layers.checks import at_least_one, between, one_of
from fq_toolkit.layers.codebook import distributed, initialization, ownership
from fq_toolkit.layers.codebook.revival import check_threshold
from fq_toolkit.layers.codebook.staging import Staging
from fq_toolkit.layers.codebook.state import (
    check_state,
    check_whole_state,
    restore_dtypes,
    with_chosen_counts,
)
from fq_toolkit.layers.codebook.statistics import HostState, batch_mean, perplexity
from fq_toolkit.layers.codebook.witness import Witness

#: A code whose moving count is below this (or below the threshold of ``revive``) counts as dead in reports.
DEAD_COUNT = 0.01
NOT_SCRIPTABLE = (
    "a {} cannot be compiled by torch.jit.script; use torch.compile, or torch.export for evaluation elsewhere"
)


class MovingDictionary(nn.Module):
    """K centroids that follow features by moving averages; `FeatureQuantizer` documents its settings.

    The buffers are the state, and the layer is their only owner: `fq_toolkit.layers.codebook.ownership` takes
    over what is assigned and notices what is written in place.  `fq_toolkit.layers.codebook.learning` starts
    and moves the dictionary.

    Attributes:
        center: ``(C,)`` float32, subtracted from features and codes before they are multiplied: any value
            gives the same indices, one amid the features keeps the most digits.
        host: what is known without asking the device.
        witness: what the state was when the layer last wrote it.
        staged: statistics that wait for a commit.
        frozen_depth: how many `frozen` blocks hold the dictionary still.
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    chosen_counts: Tensor
    num_updates: Tensor
    initialized: Tensor
    _buffers: dict[str, Tensor | None]

    def __init__(
        self,
        num_codes: int,
        codebook_dim: int,
        *,
        init: Any,
        decay: float,
        eps: float,
        ema: str,
        revive: float,
        revive_by: str,
        metric: str,
        update: str,
        update_every: int,
        process_group: Any,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.num_codes = at_least_one("num_codes", num_codes)
        self.codebook_dim = at_least_one("codebook_dim", codebook_dim)
        self.decay = between("decay", decay, 0, 1, open_above=True)
        self.eps = between("eps", eps, 0, float("inf"))
        self.ema = one_of("ema", ema, ("smoothed", "debiased"))
        self.init = one_of("init", init, initialization.INITS) if isinstance(init, str) else "given"
        self.revive_by = one_of("revive_by", revive_by, ("share", "count"))
        self.revive = check_threshold(revive, self.revive_by)
        self.metric = one_of("metric", metric, ("euclidean", "cosine"))
        self.update = one_of("update", update, ("training", "manual"))
        self.update_every = at_least_one("update_every", update_every)
        if update == "manual" and update_every != 1:
            raise ValueError(
                'update_every counts training forwards; with update="manual" call commit_updates instead'
            )
        self.process_group = distributed.ProcessGroupReference(process_group)
        self.codebook_frozen, self.frozen_depth = False, 0
        self.host, self.witness, self.staged = HostState(), Witness(), Staging()
        self._loading = False

        codebook = torch.empty(num_codes, codebook_dim, dtype=torch.float32, device=device)
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_counts", codebook.new_empty(num_codes))
        self.register_buffer("ema_sums", torch.empty_like(codebook))
        if self.revive > 0:
            self.register_buffer("chosen_counts", codebook.new_empty(num_codes))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("initialized", torch.tensor(False, device=device))
        self.center = codebook.new_empty(codebook_dim)
        self.nonfinite_rows = torch.zeros((), dtype=torch.int64, device=device)
        self._given = None
        if self.init == "given":
            self._given = initialization.as_codebook(init, num_codes, codebook_dim, metric == "cosine")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start afresh: what ``to_empty`` leaves, on a model built on the meta device, is no dictionary."""
        if self._given is None:
            codebook, counts, sums = initialization.start_values(
                self.init, self.num_codes, self.codebook_dim, self.ema == "debiased", self.codebook.device
            )
            codebook = F.normalize(codebook, dim=1) if self.metric == "cosine" else codebook
        else:
            codebook, counts, sums = self._given, torch.ones_like(self.ema_counts), self._given
        for own, value in ((self.codebook, codebook), (self.ema_counts, counts), (self.ema_sums, sums)):
            own.copy_(value)
        ownership.put_on_one_device(self)
        if self.revive > 0:
            self.chosen_counts.zero_()
        self.num_updates.zero_()
        self.nonfinite_rows.zero_()
        self.host.commits_now.zero_()
        self._empty_staged()
        self.initialized.fill_(self.init not in initialization.FROM_DATA)
        ownership.trust(self, started=False)

    # --- the ways in ----------------------------------------------------------------------------------------

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
        unit = self.metric == "cosine"
        codes = initialization.as_codebook(codebook, self.num_codes, self.codebook_dim, unit)
        ownership.check_shapes(self)
        ownership.put_on_one_device(self)
        self.codebook.copy_(codes)
        self.ema_counts.fill_(1)
        self.ema_sums.copy_(self.codebook)
        if self.revive > 0:
            self.chosen_counts.zero_()
        self.initialized.fill_(True)
        self.staged.forget(torch.ones_like(self.ema_counts, dtype=torch.bool))
        ownership.trust(self, started=True)

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
        if name in ownership.OWNED and name in self.__dict__.get("_buffers", ()) and not self._loading:
            if ownership.take_over(self, name, value):
                return
        elif name == ownership.LOADED_BY_TRANSFORMERS and value and self.witness.materialized:
            ownership.start_what_was_not_loaded(self)
        super().__setattr__(name, value)

    # --- loading, moving and copying ------------------------------------------------------------------------

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a saved state, all of it or nothing.

        Args:
            state_dict: what ``state_dict()`` returned.
            strict: refuse unexpected entries; missing ones are always refused.
            assign: as in `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: another K or dim, or an incomplete state. Nothing has changed then.
        """
        state_dict = with_chosen_counts(state_dict, "", self.revive > 0)
        check_whole_state(self, state_dict, strict=strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Called for a layer inside a model, and by our own `load_state_dict`.
        state_dict = with_chosen_counts(state_dict, prefix, self.revive > 0)
        expected = {name: tuple(own.shape) for name, own in self.state_dict().items()}
        problems = check_state(state_dict, prefix, expected)
        self._loading = True  # with assign=True, torch assigns the buffers themselves
        try:
            if not problems:
                super()._load_from_state_dict(
                    state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
                )
                self.after_load()
        finally:
            self._loading = False
        error_msgs.extend(problems)
        if not self.codebook.is_meta:
            # Loaded as it was saved; but an edited or averaged state need not agree with itself, which the
            # next training forward looks at.
            self.witness.doubt_everything(self.codebook)

    @torch.no_grad()
    def after_load(self) -> None:
        """Bring what is not saved in line with what was loaded."""
        if self.codebook.is_meta:
            return
        ownership.check_shapes(self)
        ownership.put_on_one_device(self)
        self.nonfinite_rows.zero_()
        self._empty_staged()
        self.host.commits_now.fill_(int(self.num_updates))
        started = self.has_started()
        self.initialized.fill_(started)
        ownership.trust(self, started)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingDictionary:
        """Follow the model to another device but stay float32."""
        known = self.witness.knows(self.codebook) and not self.codebook.is_meta
        before = list(self._buffers.items())
        super()._apply(fn, recurse)
        restore_dtypes(self, before)
        if known and not self.codebook.is_meta:
            self.center = self.center.to(self.codebook.device)
            self.nonfinite_rows = self.nonfinite_rows.to(self.codebook.device)
            ownership.record(self, content=False)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["frozen_depth"] = 0  # a copy made inside frozen() has no end of the block to wait for
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.codebook.is_meta and self.codebook.dtype == torch.float32:
            ownership.record(self, content=False)

    def __prepare_scriptable__(self) -> MovingDictionary:
        raise TypeError(NOT_SCRIPTABLE.format(type(self).__name__))

    # --- when it moves --------------------------------------------------------------------------------------

    @property
    def staging(self) -> bool:
        """Whether training forwards stage their statistics instead of committing them."""
        return self.update == "manual" or self.update_every > 1 or self.waits_for_model()

    def waits_for_model(self) -> bool:
        """Return whether the end of a model's forward, which is running, will commit for this layer.

        See `coalesce_updates`: only between ranks is there anything to join.
        """
        staged = self.staged
        return staged.coalesced and staged.awaited and distributed.group_name(self.process_group) is not None

    def is_due(self) -> bool:
        """Return whether ``update_every`` forwards have been staged."""
        return self.staged.pending if self.update_every == 1 else self.staged.forwards >= self.update_every

    def is_left_due(self) -> bool:
        """Return whether an update by training forwards is due that has not been committed yet."""
        return self.update == "training" and self.is_due()

    def _empty_staged(self) -> None:
        if self.staging:
            # Here and not in the first forward, which may be captured in a CUDA graph.
            self.staged.make_room(self.codebook, self.revive > 0)
        self.staged.clear()

    def freeze_codebook(self) -> None:
        """Hold the dictionary still for good: unlike ``eval()``, this survives the next ``train()``.

        Features are still quantized and the commitment loss still pulls them towards their codes. Statistics
        that wait for a commit are forgotten. Not part of ``state_dict()``.
        """
        self.codebook_frozen = True
        self.staged.clear()

    def unfreeze_codebook(self) -> None:
        """Let the dictionary move again; the opposite of `freeze_codebook`."""
        self.codebook_frozen = False

    def requires_grad_(self, requires_grad: bool = True) -> MovingDictionary:
        """Do as the base class, and freeze the dictionary too (False) or let it move again (True).

        Only called on the layer itself: ``requires_grad_`` of a model around it visits only parameters.
        """
        super().requires_grad_(requires_grad)
        if requires_grad:
            self.unfreeze_codebook()
        else:
            self.freeze_codebook()
        return self

    # --- reports; these wait for the device -----------------------------------------------------------------

    def has_started(self) -> bool:
        """Return whether the dictionary comes from data or from somebody.

        The moving counts tell as well as the flag: averages of models may copy only floats.
        """
        return bool(self.initialized) or bool((self.ema_counts > 0).any())

    def usage(self, *, moving: bool = True) -> float:
        """Return the share of the codes in use, in [0, 1]: by the moving counts, or hit by the last batch.

        A code counts by what the data chose: where a restart has put it is no use yet.
        """
        if moving:
            return 1 - self.dead_codes() / self.num_codes
        return 0.0 if self.host.counts is None else (self.host.counts > 0).float().mean().item()

    def perplexity(self, *, moving: bool = True) -> float:
        """Return ``exp(-sum p log(p + 1e-10))`` of the moving counts, or of the last batch; 0 without any."""
        counts = self.data_counts() if moving else self.host.counts
        return 0.0 if counts is None or not bool(counts.sum() > 0) else perplexity(counts).item()

    def dead_codes(self) -> int:
        """Count the codes whose moving count is below 0.01, or below the threshold of ``revive`` if higher.

        Counted since the last restart of the code, as in `usage`.
        """
        threshold = max(DEAD_COUNT, self.revive)
        if self.revive_by == "share":
            threshold = max(DEAD_COUNT, self.revive * float(self.ema_counts.mean()))
        return int((self.data_counts() < threshold).sum())

    def restarts(self) -> int:
        """Return the number of codes that restarted at the last update."""
        return 0 if self.host.restarts is None else int(self.host.restarts)

    def data_counts(self) -> Tensor:
        """Return the moving counts of the rows that chose each code, ``(K,)``, without those of restarts."""
        return self.chosen_counts if self.revive > 0 else self.ema_counts

    def last_loss(self) -> float | None:
        """Return the mean loss of the last forward, over all ranks if it committed; None before any."""
        if self.host.loss is None:
            return None
        return batch_mean(self.host.loss, self.host.samples).item()
