"""torch.compile: no graph break in training and eval, and no recompile when N changes."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import fq_toolkit
from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commit_updates, commitment_loss, frozen

OPTIONS = [
    {},
    {"mode": "regularize", "update": "manual"},
    {"mode": "rotation", "init": "kmeans", "revive": 1.0},
    {"heads": 2, "metric": "cosine", "codebook_dim": 3},
    {"preset": "fqgan-tf", "mode": "straight_through", "nonfinite": "raise"},
    {"precision": "fast", "strength": 0.5},
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def network(**options: object) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), FeatureQuantizer(8, 16, **options), nn.Conv2d(8, 1, 3))


def step(net: nn.Module, run: Callable, n: int) -> torch.Tensor:
    x = torch.randn(n, 3, 7, 7, generator=torch.Generator().manual_seed(n))
    loss = run(x).square().mean() + commitment_loss(net)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fullgraph_training_and_eval_without_recompiles(options: dict) -> None:
    backend = "aot_eager" if not options else "eager"  # tracing is what differs, and aot_eager takes a while
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    torch.manual_seed(0)
    net = network(**options)
    torch.manual_seed(0)
    eager = network(**options)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    frames = []
    for n in (3, 5, 6, 4):
        loss = step(net, compiled, n)
        torch.testing.assert_close(loss, step(eager, eager, n), rtol=1e-4, atol=1e-5)
        if options.get("update") == "manual":
            commit_updates(net)
            commit_updates(eager)
        frames.append(counter.frame_count)
    # one graph for the first size, one for all others
    assert frames == [1, 2, 2, 2]
    for name, expected in eager.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert int(net[1].num_updates) == 4
    net.eval()
    for n in (3, 5, 6, 9):
        compiled(torch.randn(n, 3, 7, 7))
    assert counter.frame_count <= 4


def test_real_and_fake_calls_accumulate_without_recompiles() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    net = network()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for n in (4, 6, 8, 5):
        real, fake = torch.randn(n, 3, 7, 7), torch.randn(n, 3, 7, 7)
        (compiled(real).mean() - compiled(fake).mean() + commitment_loss(net)).backward()
    # the graph that starts the dictionary, the same size again, any size
    assert counter.frame_count == 3
    before = net[1].codebook.clone()
    with frozen(net):
        (compiled(real).mean() + commitment_loss(net)).backward()
    assert torch.equal(net[1].codebook, before)
    assert counter.frame_count == 4


def test_update_every_has_a_graph_for_waiting_and_one_for_committing() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    net = network(update_every=2)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for n in (4, 6, 8, 5, 7, 9):
        step(net, compiled, n)
    assert int(net[1].num_updates) == 3
    assert counter.frame_count <= 3


def test_masks_lengths_and_residual_stacks() -> None:
    layer = FeatureQuantizer(4, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(3, 6, 4)
    compiled(x, lengths=torch.tensor([1, 0, 6]))
    compiled(x, mask=torch.ones(3, 6, dtype=torch.bool))
    assert int(layer.ema_counts.sum()) > 0
    stack = ResidualQuantizer(4, 8, num_levels=3, dropout=True)
    torch.compile(stack, backend="eager", fullgraph=True)(x.requires_grad_())
    assert commitment_loss(stack) > 0


def test_quantize_method_and_decode() -> None:
    layer = FeatureQuantizer(4, 8, init="normal").eval()
    x = torch.randn(5, 4)
    out = torch.compile(layer.quantize, backend="eager", fullgraph=True)(x)
    assert torch.equal(out.indices, layer.quantize(x).indices)
    assert torch.equal(
        torch.compile(layer.decode, backend="eager", fullgraph=True)(out.indices), out.quantized
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    torch.manual_seed(0)
    net = network()
    torch.manual_seed(0)
    eager = network()
    compiled = torch.compile(net, fullgraph=True)
    for n in (3, 5, 6):
        torch.testing.assert_close(step(net, compiled, n), step(eager, eager, n), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].codebook, eager[1].codebook, rtol=1e-4, atol=1e-5)


def warm_up(step: int) -> float:
    return min(1.0, step / 12)


@pytest.mark.parametrize(
    ("how", "backend"), [("schedule", "inductor"), ("schedule", "eager"), ("set", "eager")]
)
def test_a_strength_that_changes_in_every_step_compiles_nothing(how: str, backend: str) -> None:
    """Not even when the warm-up ends; the values are those of eager mode, also in a copy."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(network(strength=warm_up if how == "schedule" else 0.0, init="normal", decay=0.5))
    net, eager = nets
    net = copy.deepcopy(net)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    frames = []
    for i in range(20):
        if how == "set":
            net[1].strength = eager[1].strength = warm_up(i)
        loss = step(net, compiled, 4)
        torch.testing.assert_close(loss, step(eager, eager, 4), rtol=1e-4, atol=1e-5)
        frames.append(counter.frame_count)
    assert frames[3:] == frames[3:4] * 17
    assert frames[-1] <= 3
    assert int(net[1].num_updates) == 20


def test_a_schedule_out_of_range_is_named_inside_a_graph() -> None:
    net = network(strength=lambda step: 1.0 + step, init="normal")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    step(net, compiled, 4)
    with pytest.raises(ValueError, match=r"strength\(step\) must be in \[0, 1\], got 2"):
        step(net, compiled, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
def test_cuda_graph_of_a_training_step(mode: str) -> None:
    torch.manual_seed(0)
    layer = FeatureQuantizer(16, 32, mode=mode, device="cuda")
    x = torch.randn(8, 16, 8, 8, device="cuda", requires_grad=True)

    def train() -> None:
        x.grad = None
        (layer(x).square().mean() + commitment_loss(layer)).backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()
    before = int(layer.num_updates)
    for _ in range(4):
        graph.replay()
    torch.cuda.synchronize()
    assert int(layer.num_updates) == before + 4


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    torch.manual_seed(0)
    cpu = FeatureQuantizer(16, 32, revive=1.0)
    gpu = FeatureQuantizer(16, 32, revive=1.0, device="cuda")
    for _ in range(3):
        x = torch.randn(8, 16, 8, 8)
        a, b = cpu.quantize(x), gpu.quantize(x.cuda())
        assert torch.equal(a.indices, b.indices.cpu())
    torch.testing.assert_close(gpu.codebook.cpu(), cpu.codebook, rtol=1e-5, atol=1e-6)


def test_nobody_asks_torch_itself_whether_it_exports() -> None:
    """Torch 2.11 says so inside `torch.compile` too, where dictionaries then stood still without a word."""
    sources = Path(fq_toolkit.__file__).parent.rglob("*.py")
    asking = [path.name for path in sources if "compiler.is_exporting" in path.read_text(encoding="utf-8")]
    assert asking == ["private.py"]  # where it is told why not
