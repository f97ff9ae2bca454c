"""What the peers lack: one test per row of the comparison in the specification, named like the row.

Where a peer's entry is cheap to check it is checked too, so that the comparison stays honest: the released
layer is written down from its formulas below, vector-quantize-pytorch is used where it is installed.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fq_toolkit.kernels import ops, reference
from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen, quantize
from tests.layers.codebook import distributed_worker as worker
from tests.layers.oracles import float64_argmin, rows_of


class Released(nn.Module):
    """The released layer as its formulas read in float32."""

    def __init__(self, dim: int, codes: int, decay: float = 0.8) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("embed", torch.randn(codes, dim))
        self.register_buffer("n", torch.zeros(codes))
        self.register_buffer("m", self.embed.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows_of(x)
        squares = rows.square().sum(1, keepdim=True) + self.embed.square().sum(1)
        indices = (squares - 2 * rows @ self.embed.t()).argmin(1)
        q = self.embed[indices].view(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)
        if self.training:
            onehot = nn.functional.one_hot(indices, len(self.n)).to(rows.dtype)
            with torch.no_grad():
                self.n.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
                self.m.mul_(self.decay).add_(onehot.t() @ rows, alpha=1 - self.decay)
                total = self.n.sum()
                smoothed = (self.n + 1e-5) / (total + len(self.n) * 1e-5) * total
                self.embed.copy_(self.m / smoothed[:, None])
        return x + (q - x).detach(), indices


def lucidrains(**settings: Any) -> nn.Module:
    peer = pytest.importorskip("vector_quantize_pytorch", reason="compares with vector-quantize-pytorch")
    return peer.VectorQuantize(**settings)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def test_memory_of_the_lookup() -> None:
    n, k = 4_000, 4096
    x, codes = torch.randn(n, 2, 1, 1), torch.randn(k, 2)
    with LargestTensor() as ours:
        reference.quantize_forward(x, codes, torch.zeros(2), None, 1.0, True, True, True)
    assert ours.elements < n * k / 10
    with LargestTensor() as theirs:
        Released(2, k)(x[:2000, :, :, 0])
    assert theirs.elements >= 2000 * k
    vq = lucidrains(dim=2, codebook_size=k).eval()
    with LargestTensor() as theirs, torch.no_grad():
        vq(x[:2000, :, 0, 0][None])
    assert theirs.elements >= 2000 * k


def test_exact_indices_any_dtype(backend: str) -> None:
    x, codes = 1 + 1e-3 * torch.randn(300, 64), 1 + 1e-3 * torch.randn(100, 64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        exact = float64_argmin(x.to(dtype), codes)
        assert torch.equal(quantize(x.to(dtype), codes).indices, exact)
    exact = float64_argmin(x, codes)
    released = Released(64, 100).eval()
    released.embed.copy_(codes)
    assert not torch.equal(released(x)[1], exact)
    vq = lucidrains(dim=64, codebook_size=100).eval()
    vq._codebook.embed.copy_(codes[None])
    assert not torch.equal(vq(x[None])[1][0], exact)
    vq._codebook.embed.mul_(1e-6)
    assert len(vq(1e-6 * x[None])[1].unique()) < 5  # every distance is below its 1e-4, so nearly all tie
    assert len(quantize(1e-6 * x, 1e-6 * codes).indices.unique()) > 20


def test_nan_row_harmless(backend: str) -> None:
    x = torch.randn(50, 4)
    x[7, 2] = float("nan")
    layer, released, vq = FeatureQuantizer(4, 8), Released(4, 8), lucidrains(dim=4, codebook_size=8)
    layer(x)
    assert torch.isfinite(layer.codebook).all()
    released(x)
    released(torch.randn(50, 4))
    assert not torch.isfinite(released.embed).all()
    vq(x[None])
    assert not torch.isfinite(vq.codebook).all()


def test_deterministic_update(backend: str) -> None:
    x = torch.randn(5000, 8)
    states = []
    for _ in range(5):
        torch.manual_seed(0)
        layer = FeatureQuantizer(8, 16, revive=1.0)
        layer(x)
        layer(x.flip(0))
        states.append(torch.cat([value.double().flatten() for value in layer.state_dict().values()]))
    assert all(torch.equal(state, states[0]) for state in states)


def test_nchw_without_copies() -> None:
    seen: list[Tensor] = []
    original = ops.quantize_forward

    def watch(x: Tensor, *args: Any) -> Any:
        seen.append(x)
        return original(x, *args)

    layer = FeatureQuantizer(8, 4, init="normal")
    ops.quantize_forward = watch
    try:
        for x in (
            torch.randn(2, 8, 5, 6),
            torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last),
        ):
            layer(x)
            assert seen[-1].data_ptr() == x.data_ptr()
            assert seen[-1].stride() == x.stride()
    finally:
        ops.quantize_forward = original


def test_double_backward(backend: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), FeatureQuantizer(6, 8), nn.Linear(6, 1))
    net(torch.randn(20, 4))
    commitment_loss(net)
    x = torch.randn(20, 4, requires_grad=True)
    with frozen(net):
        loss = net(x).square().sum() + commitment_loss(net)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
    assert torch.isfinite(net[0].weight.grad).all()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_correct(use_reentrant: bool) -> None:
    def run(layer: nn.Module, through_checkpoint: bool) -> Tensor:
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

        def region(x: Tensor) -> Tensor:
            out = layer(x)
            return (out[0] if isinstance(out, tuple) else out).square() * x

        y = checkpoint(region, x, use_reentrant=use_reentrant) if through_checkpoint else region(x)
        y.sum().backward()
        return x.grad

    plain, other = (FeatureQuantizer(4, 8, init="uniform", commitment=0.0) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(run(other, True), run(plain, False))
    assert torch.equal(plain.ema_counts, other.ema_counts)
    assert int(other.num_updates) == 1
    released, repeated = Released(4, 8), Released(4, 8)
    repeated.load_state_dict(released.state_dict())
    run(released, False)
    run(repeated, True)
    assert not torch.equal(repeated.n, released.n)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    folder = tmp_path_factory.mktemp("table")
    torch.multiprocessing.spawn(
        worker.run_cases, args=(str(folder), ["data", "masked rank"], False), nprocs=2
    )
    return folder


def equal_to_one_process(folder: Path, case: str) -> None:
    alone = worker.train(worker.build(case), case, None)
    for rank in (0, 1):
        for name, value in torch.load(folder / f"{case}-{rank}.pt").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6, msg=name)


def test_layer_built_before_init_process_group_syncs(ranks: Path) -> None:
    equal_to_one_process(ranks, "data")


def test_fully_masked_rank_works(ranks: Path) -> None:
    equal_to_one_process(ranks, "masked rank")


def test_fullgraph_compile() -> None:
    torch._dynamo.reset()
    layer = FeatureQuantizer(4, 8)
    x = torch.randn(20, 4, requires_grad=True)
    torch.compile(layer, backend="eager", fullgraph=True)(x)
    torch.compile(layer.eval(), backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    vq = lucidrains(dim=4, codebook_size=8)
    with pytest.raises(Exception, match=r".+"):
        torch.compile(vq, backend="eager", fullgraph=True)(x[None])


def test_no_recompile_per_n() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(FeatureQuantizer(4, 8), backend=counter, fullgraph=True)
    for n in range(10, 30):
        compiled(torch.randn(n, 4))
    assert counter.frame_count == 2  # the first size, and all others


def test_checkpoints_of_the_others_load() -> None:
    released = {"embed": torch.randn(4, 8), "cluster_size": torch.rand(8), "embed_avg": torch.randn(4, 8)}
    assert torch.equal(FeatureQuantizer.from_reference(released).codebook, released["embed"].t())
    vq = lucidrains(dim=4, codebook_size=8)
    assert torch.equal(FeatureQuantizer.from_lucidrains(vq.state_dict()).codebook, vq.codebook)


SCRIPT = """
import torch
from fq_toolkit.layers import FeatureQuantizer, commitment_loss
torch.manual_seed(0)
layer = FeatureQuantizer(8, 16, init="uniform", revive=0.5)
x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
out = layer.quantize(x)
(out.quantized.square().sum() + out.loss.sum()).backward()
torch.save((out.indices, layer.codebook, x.grad, repr(layer)), "PATH")
"""


@pytest.mark.parametrize("name", ["native", "triton"])
def test_cpu_interpreter_export_same_api(name: str, tmp_path: Path) -> None:
    results = {}
    for which in ("reference", name):
        environment = {**os.environ, "FQ_TOOLKIT_BACKEND": which, "OMP_NUM_THREADS": "1"}
        if which == "triton":
            if problem := ops.interpreter_problem():
                pytest.skip(problem)
            environment["TRITON_INTERPRET"] = "1"
        elif ops.backend_report()[which] != "usable":
            pytest.skip(f"the {which} backend {ops.backend_report()[which]}")
        path = tmp_path / f"{which}.pt"
        subprocess.run([sys.executable, "-c", SCRIPT.replace("PATH", str(path))], env=environment, check=True)
        results[which] = torch.load(path)
    for expected, got in zip(results["reference"][:3], results[name][:3], strict=True):
        torch.testing.assert_close(got, expected)
    assert f"backend={name}" in results[name][3]


def test_export_same_api() -> None:
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(20, 4))
    layer.eval()
    x = torch.randn(6, 4)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.gpu
def test_cuda_same_api() -> None:
    cpu = FeatureQuantizer(8, 16)
    x = torch.randn(64, 8)
    cpu(x)
    gpu = FeatureQuantizer(8, 16, device="cuda")
    gpu(x.cuda())
    torch.testing.assert_close(gpu.codebook.cpu(), cpu.codebook)
