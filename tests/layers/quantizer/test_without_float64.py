"""A device without float64, as Apple's MPS: "fast" works, "exact" refuses by name."""

from typing import Any

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, codebook_report, commitment_loss, frozen

OPTIONS: list[dict[str, Any]] = [
    {}, {"mode": "regularize", "update_every": 2}, {"mode": "rotation", "init": "kmeans", "revive": 0.1},
    {"heads": 2, "metric": "cosine", "codebook_dim": 3}, {"preset": "fqgan-tf", "mode": "straight_through"},
    {"ema": "debiased", "revive": 0.5}, {"preset": "lucidrains"}, {"strength": 0.5},
    {"nonfinite": "raise", "init": "uniform"},
]  # fmt: skip


class NoFloat64(TorchDispatchMode):
    """Refuses every operation that takes or gives float64, as such a device does; counts those with data."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fq_toolkit":  # whose body would run outside of this mode
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        wide = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        wide = [x for x in wide if x.dtype in (torch.float64, torch.complex128)]
        if wide:
            self.refused += any(x.numel() > 0 for x in wide)
            raise TypeError("no float64 here")
        return out


@pytest.fixture(autouse=True)
def device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fast_uses_no_float64_anywhere(options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = FeatureQuantizer(6, 8, precision="fast", **options).to(dtype)
    with NoFloat64() as mode:
        for _ in range(3):
            x = torch.randn(5, 6, 3, 3, dtype=dtype, requires_grad=True)
            (layer(x).float().square().mean() + commitment_loss(layer)).backward()
            assert torch.isfinite(x.grad).all()
        with frozen(layer):
            (gradient,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
            gradient.float().square().sum().backward()
        layer.eval()
        out = layer.quantize(x)
        if options.get("mode") != "regularize":
            layer.decode(out.indices)
        codebook_report(layer)
        layer.set_codebook(torch.randn(8, layer.codebook_dim))
        layer.load_state_dict(layer.state_dict())
    assert int(layer.num_updates) > 0
    assert mode.refused == 0, "nothing but the question whether there is float64 may touch it"


def test_fast_finds_what_float64_finds() -> None:
    torch.manual_seed(0)
    layer = FeatureQuantizer(6, 16, precision="fast", init="normal").eval()
    x = 3 + torch.randn(500, 6)
    with NoFloat64():
        found = layer.quantize(x).indices
    nearest = (x.double()[:, None] - layer.codebook.double()[None]).square().sum(2).argmin(1)
    assert (found == nearest).float().mean() > 0.99


def test_residual_stacks_work_too() -> None:
    stack = ResidualQuantizer(4, 8, num_levels=3, dropout=True, precision="fast")
    with NoFloat64():
        x = torch.randn(3, 7, 4, requires_grad=True)
        (stack(x).mean() + commitment_loss(stack)).backward()


def test_exact_refuses_by_name_and_changes_nothing() -> None:
    layer = FeatureQuantizer(4, 8, init="normal")
    before = layer.codebook.clone()
    message = r"""the device 'cpu' cannot compute; build the layer with precision="fast\""""
    with NoFloat64(), pytest.raises(ValueError, match=message):
        layer(torch.randn(9, 4))
    assert torch.equal(layer.codebook, before)
    assert int(layer.num_updates) == 0
