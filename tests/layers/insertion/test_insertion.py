"""Section 5: quantizers in somebody else's network, the report on them, and the way back."""

import copy
import io
import logging
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from fq_toolkit.layers import (
    FeatureQuantizer,
    codebook_report,
    commitment_loss,
    frozen,
    quantize_discriminator,
)

Pair = namedtuple("Pair", ["features", "logits"])


class Block(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(cin, cout, 3, padding=1))
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.norm(self.conv(x)).relu(), 2)


class Critic(nn.Module):
    """Blocks as the released discriminators hold them, several outputs, dropout, a class label."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([Block(3, 6)]), nn.ModuleList([Block(6, 8)])])
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.3))
        self.head = Head()
        self.unused = nn.Linear(3, 3)
        self.embed = nn.Embedding(10, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for blocks in self.blocks:
            for block in blocks:
                x = block(x)
        features, logits = self.head(self.tail(x))
        return logits + (self.embed(y) * features).sum(dim=1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Pair:
        features = x.sum(dim=(2, 3))
        return Pair(features, self.linear(features).squeeze(1))


def example(n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 16, 16), torch.randint(10, (n,))


def everything(model: nn.Module) -> dict:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {"state": state, "modes": [m.training for m in model.modules()], "random": torch.get_rng_state()}


def same(a: dict, b: dict) -> None:
    assert list(a["state"]) == list(b["state"])
    assert all(torch.equal(value, b["state"][name]) for name, value in a["state"].items())
    assert a["modes"] == b["modes"]
    assert torch.equal(a["random"], b["random"])


def test_the_journey(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    critic, inputs = Critic(), example()
    critic.blocks[0].eval()
    before, text = everything(critic), repr(critic)
    with caplog.at_level(logging.INFO, logger="fq_toolkit"):
        handle = quantize_discriminator(
            critic,
            layers=["blocks.0.0", "blocks.1.0"],
            num_codes=16,
            example_inputs=inputs,
            mode="regularize",
        )
    assert "4 x 6 x 8 x 8" in str(handle)
    assert str(handle) in caplog.text
    untouched = {k: v for k, v in critic.state_dict().items() if "feature_quantizer" not in k}
    assert all(torch.equal(value, before["state"][name]) for name, value in untouched.items())
    critic.train()
    (critic(*inputs).mean() + commitment_loss(critic)).backward()
    report = codebook_report(critic)
    assert [row.layer for row in report.rows] == [
        "blocks.0.0.feature_quantizer",
        "blocks.1.0.feature_quantizer",
    ]
    table = str(report)
    assert all(word in table for word in ("layer", "shape", "K", "used", "perplexity", "dead", "loss"))
    assert "4 x 8 x 4 x 4" in table
    handle.remove()
    assert repr(critic) == text
    assert not any(module._forward_hooks for module in critic.modules())
    handle.remove()
    with pytest.raises(ValueError, match="contains no FeatureQuantizer"):
        commitment_loss(critic)


def test_remove_restores_bit_for_bit() -> None:
    critic, inputs = Critic().eval(), example()
    before, expected = everything(critic), critic(*inputs)
    handle = quantize_discriminator(critic, layers="auto", num_codes=4, example_inputs=inputs)
    assert not torch.equal(critic(*inputs), expected)
    handle.remove()
    same(everything(critic), before)
    assert torch.equal(critic(*inputs), expected)


def test_the_probe_touches_nothing() -> None:
    critic, inputs = Critic(), example()
    critic.blocks[1].eval()
    before = everything(critic)
    handle = quantize_discriminator(
        critic, layers=["tail"], num_codes=4, example_inputs=inputs, init="uniform"
    )
    handle.remove()
    now = everything(critic)
    same({**now, "random": before["random"]}, before)  # the new dictionary itself is drawn at random
    with pytest.raises(ValueError, match="no module"):
        quantize_discriminator(critic, layers=["nowhere"], num_codes=4, example_inputs=inputs)
    same(everything(critic), now)


class Counting(nn.Module):
    """Puts a new tensor in the place of its buffer, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * 1


def test_the_probe_puts_replaced_buffers_back() -> None:
    net = nn.Sequential(nn.Linear(3, 3), Counting())
    quantize_discriminator(net, layers=["0"], num_codes=2, example_inputs=torch.randn(4, 3))
    assert float(net[1].calls) == 0


def test_lazy_modules_find_their_shapes_in_the_probe() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(1))
    x = torch.randn(2, 3, 5, 5)
    quantize_discriminator(net, layers=["1"], num_codes=2, example_inputs=x)
    net(x).sum().backward()
    assert int(net[1].feature_quantizer.num_updates) == 1


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside"])
def test_a_model_that_was_compiled_before(how: str) -> None:
    net, x = nn.Sequential(OrderedDict(body=Block(3, 4), tail=nn.Flatten())), torch.randn(4, 3, 6, 6)
    runs: nn.Module = torch.compile(net, backend="eager") if how != "in place" else net
    if how == "in place":
        net.compile(backend="eager")
    runs(x)
    with torch.no_grad():
        runs.eval()(x)
    runs.train()
    target = runs if how == "wrapped" else net
    name = "_orig_mod.body" if how == "wrapped" else "body"
    handle = quantize_discriminator(target, layers=[name], num_codes=2, example_inputs=x)
    runs(x.requires_grad_()).sum().backward()
    assert int(net.body.feature_quantizer.num_updates) == 1
    handle.remove()
    runs.eval()
    assert torch.equal(runs(x), net.forward(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_projections_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten()).to(dtype), torch.randn(4, 3, 2, 2, dtype=dtype)
    quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=x, codebook_dim=2)
    assert net(x).dtype == dtype
    assert net[0].feature_quantizer.codebook.dtype == torch.float32


def test_under_autocast_projections_stay_float32() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten()), torch.randn(4, 3, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=x, codebook_dim=2)
        net(x).sum().backward()
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_remove_leaves_replaced_modules_alone() -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 1)), torch.randn(4, 3)
    handle = quantize_discriminator(net, layers=["0", "1"], num_codes=2, example_inputs=x)
    net[0] = nn.Linear(3, 3)
    handle.remove()
    assert not any(isinstance(module, FeatureQuantizer) for module in net.modules())


def test_outputs_pass_through_the_dictionary() -> None:
    critic, inputs = Critic(), example()
    quantize_discriminator(critic, layers=["blocks.1.0"], num_codes=8, example_inputs=inputs)
    critic(*inputs)
    critic.eval()
    seen: list[Tensor] = []
    critic.tail.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    critic(*inputs)
    codebook = critic.blocks[1][0].feature_quantizer.codebook
    rows = seen[0].movedim(1, -1).reshape(-1, 8)
    assert (rows[:, None] == codebook[None]).all(dim=2).any(dim=1).all()


def test_a_sequential_is_quantized_once() -> None:
    critic, inputs = Critic(), example()
    quantize_discriminator(critic, layers=["tail"], num_codes=8, example_inputs=inputs)
    calls = []
    critic.tail.feature_quantizer.register_forward_hook(lambda *_: calls.append(1))
    critic(*inputs)
    assert len(calls) == 1
    assert int(critic.tail.feature_quantizer.num_updates) == 1


def test_tuple_outputs_keep_their_type() -> None:
    critic, inputs = Critic(), example()
    quantize_discriminator(critic, layers=["head"], num_codes=2, example_inputs=inputs)
    critic(*inputs)
    critic.eval()
    out = critic.head(torch.randn(3, 8, 4, 4))
    assert isinstance(out, Pair)
    codebook = critic.head.feature_quantizer.codebook
    assert (out.features[:, None] == codebook[None]).all(dim=2).any(dim=1).all()


def transformers_output(items: tuple) -> object:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(*items)


@pytest.mark.parametrize(
    "container",
    [
        tuple,
        list,
        lambda items: {"a": items[0], "b": items[1]},
        lambda items: {0: items[0], 1: items[1]},
        lambda items: defaultdict(list, enumerate(items)),
        lambda items: OrderedDict(enumerate(items)),
        transformers_output,
    ],
)
def test_other_containers(container) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> object:
            return container((x, x.sum(dim=1)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Several()

        def forward(self, x: Tensor) -> object:
            return self.inner(x)

    net, x = Outer(), torch.randn(6, 3)
    quantize_discriminator(net, layers=["inner"], num_codes=2, example_inputs=x)
    out = net(x)
    first, second = out.values() if isinstance(out, dict) else out
    like = container((x, x.sum(dim=1)))
    assert type(out) is type(like)
    assert list(out) == list(like) if isinstance(out, dict) else len(out) == 2
    assert getattr(out, "default_factory", None) is getattr(like, "default_factory", None)
    assert torch.equal(second, x.sum(dim=1))
    assert len(first.unique(dim=0)) <= 2


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_quantizes_with_its_own_dictionary(copier) -> None:
    critic, inputs = Critic(), example()
    handle = quantize_discriminator(critic, layers=["blocks.0.0", "tail"], num_codes=8, example_inputs=inputs)
    with torch.no_grad():  # with grad, the old spectral_norm leaves a tensor behind that cannot be copied
        critic(*inputs)
    copied = copier(critic)
    before = everything(critic)["state"]
    copied(*inputs)
    assert int(copied.blocks[0][0].feature_quantizer.num_updates) == 2
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    handle.remove()
    copied(*inputs)
    assert int(copied.blocks[0][0].feature_quantizer.num_updates) == 3


def test_state_saves_and_loads() -> None:
    critic, inputs = Critic(), example()
    quantize_discriminator(critic, layers=["blocks.0.0"], num_codes=8, example_inputs=inputs)
    critic(*inputs)
    buffer = io.BytesIO()
    torch.save(critic.state_dict(), buffer)
    buffer.seek(0)
    other = Critic()
    quantize_discriminator(other, layers=["blocks.0.0"], num_codes=8, example_inputs=inputs)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other.eval()(*inputs), critic.eval()(*inputs))


def test_auto_takes_the_last_module_at_each_resolution() -> None:
    critic, inputs = Critic(), example()
    handle = quantize_discriminator(critic, layers="auto", num_codes=8, example_inputs=inputs)
    assert [layer.name for layer in handle.layers] == ["blocks.0.0", "tail.1"]
    handle.remove()
    mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"auto.*finds no feature maps.*'0' \(5, 4\)"):
        quantize_discriminator(mlp, layers="auto", num_codes=8, example_inputs=torch.randn(5, 3))


def test_num_codes_by_name_and_keyword_inputs() -> None:
    critic, (x, y) = Critic(), example()
    sizes = {"blocks.0.0": 4, "blocks.1.0": 8}
    quantize_discriminator(critic, layers=sizes, num_codes=sizes, example_inputs={"y": y, "x": x}, revive=0.5)
    assert [row.num_codes for row in codebook_report(critic).rows] == [4, 8]
    assert critic.blocks[0][0].feature_quantizer.revive == 0.5


REFUSED = [
    (["blocks.0.1"], {}, r"no module 'blocks\.0\.1'; near names are 'blocks\.0\.0'"),
    (["unused"], {}, "'unused' did not run in the probe"),
    (["embed.weight"], {}, "no module 'embed.weight'"),
    (["blocks.0"], {}, r"'blocks\.0' is a ModuleList.*name one of them, such as 'blocks\.0\.0'"),
    (["blocks.0.0", "blocks.0.0"], {}, "the same module, which cannot be quantized twice"),
    (["blocks.0.0"], {"num_codes": {"blocks.1.0": 3}}, "num_codes has no entry for 'blocks.0.0'"),
    ([], {}, "layers is empty"),
    ("all", {}, 'list of names or "auto"'),
    (["blocks.0.0"], {"decay": 2.0}, "decay must be in"),
]


@pytest.mark.parametrize(("layers", "extra", "message"), REFUSED)
def test_what_cannot_be_quantized_is_refused_and_nothing_changes(layers, extra: dict, message: str) -> None:
    critic, inputs = Critic(), example()
    before, text = everything(critic), repr(critic)
    with pytest.raises(ValueError, match=message):
        quantize_discriminator(critic, layers=layers, **{"num_codes": 4, "example_inputs": inputs, **extra})
    same(everything(critic), before)
    assert repr(critic) == text
    assert not any(module._forward_hooks for module in critic.modules())


def test_a_module_is_refused_a_second_time() -> None:
    critic, inputs = Critic(), example()
    handle = quantize_discriminator(critic, layers=["tail"], num_codes=4, example_inputs=inputs)
    for name in ("tail", "tail.feature_quantizer"):
        with pytest.raises(ValueError, match="is quantized already"):
            quantize_discriminator(critic, layers=[name], num_codes=4, example_inputs=inputs)
    handle.remove()
    quantize_discriminator(critic, layers=["tail"], num_codes=4, example_inputs=inputs)


def test_an_output_without_channels_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Flatten(0))
    with pytest.raises(ValueError, match="holds no features"):
        quantize_discriminator(net, layers=["1"], num_codes=4, example_inputs=torch.randn(5, 3))


def test_training_with_frozen_generator_step() -> None:
    critic, inputs = Critic(), example()
    quantize_discriminator(critic, layers=["blocks.0.0"], num_codes=8, example_inputs=inputs)
    (critic(*inputs).mean() + commitment_loss(critic)).backward()
    before = critic.blocks[0][0].feature_quantizer.codebook.clone()
    with frozen(critic):
        (critic(*inputs).mean() + commitment_loss(critic)).backward()
    assert torch.equal(critic.blocks[0][0].feature_quantizer.codebook, before)


def test_report_plots_and_reports_on_a_fresh_model(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), FeatureQuantizer(4, 8), FeatureQuantizer(4, 6))
    assert " - " in str(codebook_report(net))
    net(torch.randn(40, 3))
    path = codebook_report(net).plot(tmp_path / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no FeatureQuantizer to report on"):
        codebook_report(nn.Linear(2, 2))
