"""The ways in which somebody writes into a dictionary, and the settings under which tests try them."""

from collections.abc import Callable
from typing import Any

import torch

from fq_toolkit.layers import FeatureQuantizer

STARTS = [
    {"init": "data"},
    {"init": "kmeans"},
    {"init": "normal"},
    {"init": "uniform"},
    {"preset": "fqgan"},
    {"preset": "fqgan-tf"},
    {"metric": "cosine"},
    {"init": "normal", "metric": "cosine", "revive": 0.1},
    {"revive": 0.2},
    {"update_every": 2},
]


def by_numpy(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.codebook.numpy()[:] = w.numpy()


def by_data(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.codebook.data = w.clone()


def by_buffers(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer._buffers["codebook"] = w.clone()


def by_state_dict(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "codebook": w})


def by_rows(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    for k, row in enumerate(w):
        layer.codebook[k] = row


WRITES: dict[str, Callable[[FeatureQuantizer, torch.Tensor], Any]] = {
    "assignment": lambda layer, w: setattr(layer, "codebook", w),
    "assignment of float64": lambda layer, w: setattr(layer, "codebook", w.double()),
    "copy_": lambda layer, w: layer.codebook.copy_(w),
    "slice": lambda layer, w: layer.codebook.__setitem__(slice(None), w),
    "rows": by_rows,
    "data.copy_": lambda layer, w: layer.codebook.data.copy_(w),
    "data": by_data,
    "numpy": by_numpy,
    "state_dict().copy_": lambda layer, w: layer.state_dict()["codebook"].copy_(w),
    "state_dict().data.copy_": lambda layer, w: layer.state_dict()["codebook"].data.copy_(w),
    "register_buffer": lambda layer, w: layer.register_buffer("codebook", w.clone()),
    "_buffers": by_buffers,
}


def codes(k: int = 16, dim: int = 4, seed: int = 7) -> torch.Tensor:
    return torch.randn(k, dim, generator=torch.Generator().manual_seed(seed)) + 3


def batches(count: int, dim: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(50, dim, generator=draw) for _ in range(count)]


def same_state(a: FeatureQuantizer, b: FeatureQuantizer) -> bool:
    names = ("codebook", "ema_counts", "ema_sums", "initialized")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
