"""Quantizers in networks of others: channel axes, logit maps, blocks that run their children, copies."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor, nn

from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen, quantize_discriminator
from tests.layers.insertion.foreign_networks import (
    ChannelsLast,
    MultiScale,
    PatchDiscriminator,
    Recurrent,
    RunsItsChildren,
    VisionTransformer,
)


class Reorder(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


AXES = [
    (nn.Sequential(nn.Conv1d(1, 6, 5), nn.LeakyReLU(), nn.AvgPool1d(2)), (2, 1, 40), 6),
    (nn.Sequential(nn.Conv1d(1, 6, 5), nn.BatchNorm1d(6), nn.Upsample(scale_factor=2)), (2, 1, 40), 6),
    (nn.Sequential(nn.Conv1d(1, 6, 5), Reorder(0, 2, 1), nn.LayerNorm(6)), (2, 1, 40), 6),
    (nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.ReLU()), (2, 3, 9, 9), 6),
    (nn.Sequential(nn.Conv2d(3, 6, 3), Reorder(0, 2, 3, 1), nn.Linear(6, 10)), (2, 3, 9, 9), 10),
    (nn.Sequential(nn.Conv2d(3, 6, 3), Reorder(0, 2, 3, 1), nn.LayerNorm(6), Reorder(0, 3, 1, 2)),
     (2, 3, 9, 9), 6),
    (nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), Reorder(0, 2, 1), Twice()), (2, 3, 16, 16), 6),
    (nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), Twice()), (2, 3, 16, 16), 6),
    (nn.Sequential(nn.Conv3d(2, 6, 2), nn.GroupNorm(2, 6), nn.SiLU()), (2, 2, 4, 4, 4), 6),
    (nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Dropout()), (2, 7, 5), 6),
    (nn.Sequential(nn.Linear(5, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)), (2, 7, 5), 6),
    (nn.Sequential(nn.ConvTranspose1d(2, 6, 4, 2), Twice()), (2, 2, 6), 6),
    (nn.Sequential(nn.Conv1d(1, 6, 5), nn.Linear(36, 10)), (2, 1, 40), 10),
]  # fmt: skip


@pytest.mark.parametrize(("net", "shape", "channels"), AXES)
def test_the_channel_axis_is_that_of_what_made_the_features(
    net: nn.Sequential, shape: tuple, channels: int
) -> None:
    net = copy.deepcopy(net)
    body = nn.Sequential(net, nn.Flatten(), nn.LazyLinear(1))
    name = f"0.{len(net) - 1}"
    x = torch.randn(shape)
    handle = quantize_discriminator(body, layers=[name], num_codes=4, example_inputs=x)
    assert handle.layers[0].dim == channels
    body(x)
    body.eval()
    features = net(x)
    codebook = net[-1].feature_quantizer.codebook
    axis = features.shape.index(channels)
    rows = features.movedim(axis, -1).reshape(-1, channels)
    assert (rows[:, None] == codebook[None]).all(2).any(1).all()


def test_equal_axes_are_told_apart_too() -> None:
    net = nn.Sequential(nn.Conv1d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
    x = torch.randn(3, 1, 8)
    quantize_discriminator(net, layers=["1"], num_codes=4, example_inputs=x)
    net(x)
    net.eval()
    rows = net[1](net[0](x)).movedim(1, -1).reshape(-1, 8)
    assert (rows[:, None] == net[1].feature_quantizer.codebook[None]).all(2).any(1).all()
    longer = torch.randn(3, 1, 11)
    net[1](net[0](longer))  # another length is no error


def test_what_nothing_tells_is_refused_until_it_is_said() -> None:
    net = nn.Sequential(Twice(), nn.Flatten(), nn.Linear(20, 1))
    x = torch.randn(2, 4, 5)
    with pytest.raises(ValueError, match=r"nothing tells which axis .*'0'.*channel_dim=\{'0': axis\}"):
        quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=x)
    for given, dim in (({"0": 1}, 4), ({"0": -1}, 5), (1, 4)):
        handle = quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=x, channel_dim=given)
        assert handle.layers[0].dim == dim
        net(x)
        handle.remove()


def test_foreign_networks_have_the_channels_of_their_layers() -> None:
    audio, wave = MultiScale(), torch.randn(2, 1, 64)
    names = ["discriminators.0.convs.1", "discriminators.1.convs.0"]
    handle = quantize_discriminator(audio, layers=names, num_codes=4, example_inputs=wave)
    assert [layer.dim for layer in handle.layers] == [8, 6]
    audio(torch.randn(2, 1, 96))
    swin = ChannelsLast()
    handle = quantize_discriminator(swin, layers=["stage", "merge"], num_codes=4, example_inputs=images())
    assert [layer.dim for layer in handle.layers] == [8, 12]
    swin(images())
    handle = quantize_discriminator(
        Recurrent(), layers=["rnn"], num_codes=4, example_inputs=torch.randn(2, 7, 4)
    )
    assert handle.layers[0].dim == 8


def test_a_vision_transformer_has_its_channels_last() -> None:
    net = VisionTransformer()
    names = ["patches", "blocks.0", "blocks.1.proj", "blocks.1.mlp"]
    handle = quantize_discriminator(net, layers=names, num_codes=4, example_inputs=images())
    assert [layer.dim for layer in handle.layers] == [16] * 4
    modules = dict(net.named_modules())
    axes = [modules[f"{name}.feature_quantizer"].channel_dim for name in names]
    assert axes == [1, -1, -1, -1]
    net(images()).sum().backward()
    assert all(int(modules[f"{name}.feature_quantizer"].num_updates) == 1 for name in names)


# --- auto ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [(), (nn.Sigmoid(),), (nn.Flatten(),), (nn.AdaptiveAvgPool2d(4), nn.Sigmoid())]
)
def test_auto_leaves_the_map_of_logits_alone(end: tuple[nn.Module, ...]) -> None:
    net = PatchDiscriminator(*copy.deepcopy(end))
    before = net.eval()(images().fill_(0.5)).unique().numel()
    handle = quantize_discriminator(net.train(), layers="auto", num_codes=4, example_inputs=images())
    assert all(layer.dim > 1 for layer in handle.layers)
    assert {layer.name for layer in handle.layers} == {"1", "4"}
    assert before > 0


def test_auto_takes_the_blocks_of_a_dcgan() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
        nn.Conv2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.2, True),
        nn.Conv2d(6, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, True),
        nn.Conv2d(8, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
    )  # fmt: skip
    handle = quantize_discriminator(net, layers="auto", num_codes=4, example_inputs=images())
    assert [(layer.name, layer.dim) for layer in handle.layers] == [("1", 4), ("4", 6), ("7", 8)]


def test_auto_takes_maps_that_are_returned_on_the_way() -> None:
    class Images(MultiScale):
        """The same with maps of images, as in multi-scale image discriminators."""

        def __init__(self) -> None:
            super().__init__()
            for scale in self.discriminators:
                scale.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)])
                scale.conv_post = nn.Conv2d(8, 1, 3, 1, 1)

        def forward(self, x: Tensor) -> list:
            return [self.discriminators[0](x), self.discriminators[1](nn.functional.avg_pool2d(x, 3))]

    handle = quantize_discriminator(Images(), layers="auto", num_codes=4, example_inputs=images())
    assert all(layer.dim in (6, 8) for layer in handle.layers)


def test_auto_still_takes_the_last_block_of_a_projection_discriminator() -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Conv2d(3, 6, 4, 4)
            self.embed = nn.Embedding(3, 6)
            self.linear = nn.Linear(6, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.block(x).relu().sum((2, 3))
            return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)

    inputs = (images(), torch.tensor([0, 2]))
    handle = quantize_discriminator(Projection(), layers="auto", num_codes=4, example_inputs=inputs)
    assert [layer.name for layer in handle.layers] == ["block"]


# --- blocks that run their children -------------------------------------------------------------------------


def test_a_block_that_runs_its_children_quantizes_once() -> None:
    net = nn.Sequential(RunsItsChildren(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Flatten(), nn.LazyLinear(1))
    handle = quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=images())
    calls: list[int] = []
    layer = net[0].feature_quantizer
    layer.register_forward_hook(lambda *_: calls.append(1))
    net(images())
    assert (len(calls), int(layer.num_updates)) == (1, 1)
    handle.remove()
    assert not list(net[0]._forward_hooks)


def test_a_block_that_goes_on_after_its_children_is_refused() -> None:
    net = nn.Sequential(RunsItsChildren(nn.Conv2d(3, 3, 1), residual=True), nn.Flatten(), nn.LazyLinear(1))
    before = repr(net)
    with pytest.raises(ValueError, match=r"'0' \(RunsItsChildren\) runs its children itself"):
        quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=images())
    net(images())
    assert "feature_quantizer" not in repr(net)
    assert "Probe" not in repr(net)
    assert before.count("RunsItsChildren") == 1


# --- operations that move, cut and join channels ------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class LastConv(nn.Conv2d):
    """A subclass that returns another layout than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)


class Mixer(nn.Module):
    """A linear layer over tokens, joined in either order (MLP-Mixer, arXiv 2105.01601)."""

    def __init__(self, tokens: int, dim: int, *, swapped: bool) -> None:
        super().__init__()
        self.norm, self.mix, self.swapped = nn.LayerNorm(dim), nn.Linear(tokens, tokens), swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return y + x if self.swapped else x + y


FUNCTIONS = [
    (lambda x: torch.cat([x, 2 * x], 1), 1),
    (lambda x: torch.cat([x, x.std(0, keepdim=True).mean((1, 2, 3), keepdim=True).expand(2, 1, 9, 9)], 1), 1),
    (lambda x: nn.functional.glu(x, 1), 1),
    (lambda x: x.chunk(2, 1)[1], 1),
    (lambda x: x[:, 1:4], 1),
    (lambda x: x.permute(0, 2, 3, 1)[..., :5].relu(), 3),
    (lambda x: nn.functional.pad(x, (1, 1, 1, 1)), 1),
    (lambda x: x.flatten(2).softmax(2), 1),
    (lambda x: torch.bmm(x.flatten(2), torch.eye(81).expand(2, 81, 81)), 1),
    (lambda x: torch.einsum("bchw->bhwc", x) * 2, 3),
]


@pytest.mark.parametrize(("function", "axis"), FUNCTIONS)
def test_the_axis_is_followed_through_functions(function, axis: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Function(function), nn.Flatten(), nn.LazyLinear(1))
    x = torch.randn(2, 3, 9, 9)
    handle = quantize_discriminator(net, layers=["1"], num_codes=4, example_inputs=x)
    (layer,) = handle.layers
    assert (layer.dim, net[1].feature_quantizer.channel_dim % len(layer.shape)) == (layer.shape[axis], axis)


def test_a_subclass_that_permutes_is_not_taken_for_its_parent() -> None:
    net = nn.Sequential(LastConv(3, 9, 1), nn.Flatten(), nn.LazyLinear(1))
    quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=torch.randn(2, 3, 9, 9))
    assert net[0].feature_quantizer.channel_dim == -1


@pytest.mark.parametrize("swapped", [False, True])
def test_where_two_axes_meet_nothing_is_guessed(swapped: bool) -> None:
    net = nn.Sequential(Mixer(7, 5, swapped=swapped), nn.LayerNorm(5), nn.Flatten(), nn.Linear(35, 1))
    x = torch.randn(2, 7, 5)
    with pytest.raises(ValueError, match=r"nothing tells which axis .*'0'"):
        quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=x)
    handle = quantize_discriminator(net, layers=["1"], num_codes=4, example_inputs=x)
    assert handle.layers[0].dim == 5


@pytest.mark.parametrize(
    ("norm", "dim"),
    [(nn.LayerNorm(5), 5), (nn.RMSNorm(5), 5), (nn.BatchNorm1d(4), 4), (nn.GroupNorm(2, 4), 4)],
)
def test_a_norm_tells_of_an_input_that_nothing_made(norm: nn.Module, dim: int) -> None:
    net = nn.Sequential(copy.deepcopy(norm), nn.Flatten(), nn.Linear(20, 1))
    handle = quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=torch.randn(2, 4, 5))
    assert handle.layers[0].dim == dim


def test_channels_on_the_batch_axis_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 1), Reorder(1, 0, 2), nn.Flatten(), nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"nothing tells which axis .*'1'"):
        quantize_discriminator(net, layers=["1"], num_codes=4, example_inputs=torch.randn(2, 3, 5))


def test_an_axis_for_a_module_that_is_not_quantized_is_refused() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 1), nn.Flatten(), nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"channel_dim names '0\.conv', which is not among"):
        quantize_discriminator(
            net, layers=["0"], num_codes=4, example_inputs=torch.randn(2, 3, 5), channel_dim={"0.conv": 1}
        )


# --- outputs and children of other kinds --------------------------------------------------------------------


@dataclasses.dataclass
class Judgement:
    logits: Tensor
    maps: list


class WithDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.post = nn.Conv2d(3, 6, 4, 2, 1), nn.Conv2d(6, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Judgement:
        h = self.body(x).relu()
        return Judgement(self.post(h), [h])


def test_auto_finds_the_logits_inside_an_object() -> None:
    handle = quantize_discriminator(WithDataclass(), layers="auto", num_codes=4, example_inputs=images())
    assert [layer.name for layer in handle.layers] == ["body"]


class GivesMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x, *(() if child is self.a else (torch.ones(2),)))
        return x


class HeadIsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        *body, head = self.children()
        for child in body:
            x = child(x)
        return head(x.relu())


class LeavesOutTheLast(HeadIsLast):
    def forward(self, x: Tensor) -> Tensor:
        for child in list(self.children())[:-1]:
            x = child(x)
        return x


@pytest.mark.parametrize("block", [GivesMore, HeadIsLast, LeavesOutTheLast])
def test_a_block_that_a_new_child_would_change_is_refused(block: type[nn.Module]) -> None:
    net = nn.Sequential(block(), nn.Flatten(), nn.LazyLinear(1))
    before = net(images()).shape
    with pytest.raises(ValueError, match="runs its children itself"):
        quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=images())
    assert net(images()).shape == before
    assert "feature_quantizer" not in repr(net)


# --- the handle ---------------------------------------------------------------------------------------------


def test_new_parameters_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.LazyLinear(1))
    handle = quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=images(), codebook_dim=2)
    assert {id(p) for p in handle.parameters()} == {id(p) for p in net[0].feature_quantizer.parameters()}
    assert "new parameters" in str(handle)
    assert "handle.parameters()" in str(handle)
    handle.remove()
    assert handle.parameters() == []
    plain = quantize_discriminator(net, layers=["0"], num_codes=4, example_inputs=images())
    assert (plain.parameters(), "new parameters" in str(plain)) == ([], False)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_restored_by_the_same_handle(copier) -> None:
    net = PatchDiscriminator()
    x = images()
    expected = net.eval()(x)
    handle = quantize_discriminator(net, layers=["1", "4"], num_codes=4, example_inputs=x)
    copied = copier(net)
    handle.remove(copied)
    assert torch.equal(copied(x), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copied.modules())
    assert sum(isinstance(m, FeatureQuantizer) for m in net.modules()) == 2
    with pytest.raises(ValueError, match="none of the quantizers of this handle"):
        handle.remove(copied)
    handle.remove()
    assert torch.equal(net(x), expected)


# --- the bare layer -----------------------------------------------------------------------------------------


def test_a_sequence_with_two_possible_axes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dim=4 on both axes.*channel_dim=-1 for the first, 1 for the second"
    ):
        FeatureQuantizer(4, 8)(torch.randn(2, 4, 4))
    for axis in (1, 2, -1):
        assert FeatureQuantizer(4, 8, channel_dim=axis)(torch.randn(2, 4, 4)).shape == (2, 4, 4)
    with pytest.raises(ValueError, match="as from a Conv1d, build it with channel_dim=1"):
        FeatureQuantizer(4, 8)(torch.randn(2, 4, 9))


def test_a_compiled_layer_refuses_them_too() -> None:
    layer = torch.compile(FeatureQuantizer(4, 8, init="normal").eval(), backend="aot_eager")
    layer(torch.randn(2, 5, 4))
    layer(torch.randn(2, 6, 4))  # from here on the length varies
    with pytest.raises(ValueError, match="dim=4 on both axes"):
        layer(torch.randn(2, 4, 4))


@pytest.mark.parametrize("lengths", [[-1, 2], [2, 8], [2**40, 1]])
def test_lengths_outside_the_sequence_are_refused(lengths: list[int]) -> None:
    layer = FeatureQuantizer(4, 8)
    with pytest.raises(ValueError, match="the features have 7 positions; give numbers from 0 to that"):
        layer(torch.randn(2, 7, 4), lengths=torch.tensor(lengths))
    assert int(layer.num_updates) == 0
    layer(torch.randn(2, 7, 4), lengths=torch.tensor([0, 7]))


def test_a_loss_that_ended_with_its_frozen_block_is_missed() -> None:
    layer = FeatureQuantizer(4, 8)
    x = torch.randn(9, 4, requires_grad=True)
    with frozen(layer):
        layer(x)
        assert commitment_loss(layer) > 0
    assert commitment_loss(layer) == 0  # read inside: nothing is missed
    with frozen(layer):
        layer(x)
    with pytest.warns(UserWarning, match="nothing was recorded since a frozen block"):
        assert commitment_loss(layer) == 0
    with frozen(layer):  # a gradient penalty, whose losses nobody wants
        layer(x)
    layer(x)
    assert commitment_loss(layer) > 0
