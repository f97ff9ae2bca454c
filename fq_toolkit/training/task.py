"""The base of all trainers: what has to be saved, restored and watched, written once.

A trainer subclasses `TrainingTask`, names its networks, optimizers and data orders, and writes `step`. What
follows from the names is here: the state of a checkpoint, the check that a run goes on with its own data, and
the guard against weights that are not finite.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.training.errors import CheckpointError
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder

DATA = "data"
"""Where a task's state keeps the fingerprint of what is trained on."""


class LoopResult(NamedTuple):
    """How the loop ended."""

    step: int
    seconds: float
    signal: int | None
    evaluation: dict[str, float]


class TrainingTask(ABC):
    """A trainer, as the loop and the run folder see it. All processes call every method, in the same order.

    Attributes:
        config: all options.
        accelerator: an ``accelerate.Accelerator``.
        trained_on: what ``fingerprint`` covers, as the subject of an error message.
        selection: the figure by which the best checkpoint is kept; None keeps only the newest.
        last_evaluation: the last measurement, None before the first; its ``str`` is what users read.
    """

    config: Any
    accelerator: Any
    trained_on: str = "the data"
    selection: Selection | None = None
    last_evaluation: Any = None

    # What a trainer names ---------------------------------------------------------------------------------

    @abstractmethod
    def modules(self) -> Mapping[str, Any]:
        """Return name -> network, or anything else with ``state_dict`` and ``load_state_dict``."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, Any]:
        """Return name -> optimizer, as accelerate prepared it."""

    @abstractmethod
    def orders(self) -> Mapping[str, Any]:
        """Return name -> order in which data are visited."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of what is trained on: checkpoints are of no use with other data."""

    @property
    def source(self) -> str:
        """Return where the training data lie, for messages."""
        return str(self.config.data)

    def extra_state(self) -> dict[str, Any]:
        """Return what decides how training goes on beside networks, optimizers and orders."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027  (most have none)
        """Restore what `extra_state` returned, out of the whole state."""

    # What a trainer does ----------------------------------------------------------------------------------

    @abstractmethod
    def step(self, step: int) -> Mapping[str, Tensor]:
        """Do step ``step`` (from 0); return 0-dim tensors on the device without waiting for it."""

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Measure the model, set `last_evaluation`, return the columns.

        Training and its random state stay as they were.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return one line: data, networks, settings, device."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``: seconds, metrics, gauges, evaluation."""

    @abstractmethod
    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return name -> what evaluations measure on; goes into checkpoints."""

    @abstractmethod
    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write pictures and, when ``complete``, ``evaluation.json``. Called on the main process."""

    def gauges(self) -> Mapping[str, float]:
        """Return readings that are only taken when logging: dictionary usage, schedule values."""
        return {}

    def prepare_evaluation(self) -> None:  # noqa: B027  (nothing to prepare is the usual case)
        """Do once, before the first step, what evaluations need."""

    # What follows -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that decides how training goes on, except the global random state."""
        scaler = self.accelerator.scaler
        return {
            DATA: self.fingerprint,
            **{name: dict(module.state_dict()) for name, module in self.modules().items()},
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
            **{name: order.state_dict() for name, order in self.orders().items()},
            **self.extra_state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: when the data are not those of the run.
        """
        check_data(state, self.fingerprint, what=self.trained_on, source=self.source)
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        for name, optimizer in self.optimizers().items():
            load_optimizer(optimizer, state[name])
        for name, order in self.orders().items():
            order.load_state_dict(state[name])
        self.load_extra_state(state)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def is_finite(self) -> bool:
        """Return whether all weights are finite. Waits for the device."""
        networks = [module for module in self.modules().values() if isinstance(module, nn.Module)]
        weights = [weight.detach() for network in networks for weight in network.parameters()]
        # One reduction a tensor and a single wait, rather than a wait for every tensor.
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())

    def where(self) -> str:
        """Return the device, threads and processes, as the end of a summary."""
        device, processes = self.accelerator.device, self.accelerator.num_processes
        place = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        return f"{place}, {processes} processes" if processes > 1 else place


def count_weights(*modules: nn.Module) -> int:
    """Return the number of weights of all modules together."""
    return sum(weight.numel() for module in modules for weight in module.parameters())


def check_data(state: Mapping[str, Any], fingerprint: str, *, what: str, source: str) -> None:
    """Refuse the state of a run that was trained on other data.

    Args:
        state: of a task; one that was saved before there were fingerprints passes.
        fingerprint: of the data that are there.
        what: the kind of data, as the subject of a sentence.
        source: where they are.

    Raises:
        CheckpointError: naming the source.
    """
    if state.get(DATA, fingerprint) != fingerprint:
        raise CheckpointError(
            f"{what} of {source} are not those the run was started with, and its checkpoints are of no use "
            "without those. Bring them back, or start a new run."
        )


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state dict and give every moment the memory layout of its parameter.

    Files hold contiguous tensors; a parameter in channels_last whose moments are not takes the slow path of
    the optimizer, and fused kernels expect both to be laid out alike.

    Args:
        optimizer: a torch optimizer, or accelerate's wrapper of one.
        state: what its ``state_dict`` returned.
    """
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
