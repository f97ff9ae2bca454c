"""Float32 state through every cast, and strict loading."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fq_toolkit.layers import FeatureQuantizer, commit_updates, commitment_loss

BUFFERS = ["codebook", "ema_counts", "ema_sums", "center"]


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to(device="cpu", dtype=torch.bfloat16),
        lambda m: m.half().float(),
    ],
)
def test_state_stays_float32_and_keeps_every_bit(cast) -> None:
    net = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 8, codebook_dim=2, update_every=2))
    net(torch.randn(9, 4))
    before = {name: getattr(net[1], name).clone() for name in BUFFERS}
    cast(net)
    for name, value in before.items():
        assert getattr(net[1], name).dtype == torch.float32
        assert torch.equal(getattr(net[1], name), value)
    assert net[1].num_updates.dtype == torch.int64
    dtype = net[0].weight.dtype
    y = net(torch.randn(9, 4, dtype=dtype))
    assert y.dtype == dtype


def test_a_cast_that_goes_around_the_module_is_undone() -> None:
    layer = FeatureQuantizer(4, 8, init="normal")
    for name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            getattr(layer, name).data = buffer.to(torch.bfloat16)
    layer(torch.randn(9, 4))
    assert all(getattr(layer, name).dtype == torch.float32 for name in BUFFERS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 8), FeatureQuantizer(8, 16), nn.Linear(8, 2))
    for _ in range(3):
        with torch.autocast("cpu", dtype=dtype):
            y = net(torch.randn(30, 4))
            loss = y.float().square().mean() + commitment_loss(net)
        loss.backward()
    assert y.dtype == dtype
    assert net[1].codebook.dtype == torch.float32
    assert torch.isfinite(net[1].codebook).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.fixture
def torch_defaults() -> Iterator[None]:
    """Whatever a test sets as default dtype and device ends with it."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def everything(init: str, options: dict) -> list[torch.Tensor]:
    """Outputs, gradients, losses and state of a few float32 steps on the CPU, whatever the defaults."""
    draw = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(40, 4, 3, 3, generator=draw, dtype=torch.float32, device="cpu")
    torch.manual_seed(0)
    layer, seen = FeatureQuantizer(4, 8, init=init, device="cpu", **options), []
    for _ in range(2):
        features = x.clone().requires_grad_()
        y, loss = layer(features, mask=x[:, 0] > -1), commitment_loss(layer)
        (y.sum() + loss).backward()
        seen += [y.detach(), features.grad, loss.detach()]
    layer.update = "manual"
    layer(x)
    commit_updates(layer)
    out = layer.quantize(x)
    return [*seen, out.indices, out.loss, out.perplexity, *layer.state_dict().values()]


@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.float64, None), (torch.bfloat16, None), (torch.float16, None), (torch.float32, "meta")],
)
@pytest.mark.parametrize(
    ("init", "options"),
    [
        ("data", {"revive": 0.5, "update_every": 2}),
        ("kmeans", {"metric": "cosine"}),
        ("normal", {"ema": "debiased"}),
        ("uniform", {"heads": 2}),
    ],
)
@pytest.mark.usefixtures("torch_defaults")
def test_default_dtype_and_device_change_no_bit(
    init: str, options: dict, dtype: torch.dtype, device: str | None
) -> None:
    expected = everything(init, options)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    for value, found in zip(expected, everything(init, options), strict=True):
        assert (found.dtype, found.device) == (value.dtype, value.device)
        assert torch.equal(found, value)


def test_meta_device_and_materialization() -> None:
    with torch.device("meta"):
        layer = FeatureQuantizer(4, 8)
    assert "device=meta" in repr(layer)
    assert layer.codebook.device.type == "meta"
    source = FeatureQuantizer(4, 8)
    source(torch.randn(20, 4))
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(layer.eval()(x), source.eval()(x))


@pytest.mark.parametrize(
    "options", [{}, {"init": "normal", "update": "manual"}, {"init": "uniform", "metric": "cosine"}]
)
def test_reset_after_to_empty_is_a_new_layer(options: dict) -> None:
    torch.manual_seed(0)
    new = FeatureQuantizer(4, 8, **options)
    layer = FeatureQuantizer(4, 8, device="meta", **options).to_empty(device="cpu")
    for buffer in layer.buffers():
        buffer.fill_(7)
    torch.manual_seed(0)
    layer.reset_parameters()
    for (name, value), other in zip(layer.named_buffers(), new.buffers(), strict=True):
        assert torch.equal(value, other), name
    x = torch.randn(20, 4)
    assert torch.equal(layer(x), new(x))
    layer.reset_parameters()
    assert int(layer.num_updates) == 0
    assert bool(layer.initialized) == ("init" in options)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("options", [{}, {"update": "manual", "revive": 0.5}, {"codebook_dim": 2}])
@pytest.mark.parametrize("save", ["as it is", "float64", "transposed"])
def test_an_assigned_state_is_a_loaded_one(device: str, options: dict, save: str) -> None:
    source = FeatureQuantizer(4, 8, **options)
    source(torch.randn(20, 4))
    state = source.state_dict()
    change = {"as it is": lambda v: v.clone(), "float64": lambda v: v.double()}
    change["transposed"] = lambda v: v.t().contiguous().t() if v.ndim == 2 else v.clone()
    copies = {k: change[save](v) if "." not in k and v.is_floating_point() else v for k, v in state.items()}
    loaded, assigned = FeatureQuantizer(4, 8, **options), FeatureQuantizer(4, 8, device=device, **options)
    loaded.load_state_dict(state)
    assigned.load_state_dict({k: v.clone() for k, v in copies.items()}, assign=True)
    for _ in range(2):
        x = torch.randn(9, 4)
        assert torch.equal(assigned(x), loaded(x))
        if options.get("update") == "manual":
            commit_updates(assigned)
            commit_updates(loaded)
    assert torch.equal(assigned.eval()(x), loaded.eval()(x))
    for (name, value), other in zip(assigned.named_buffers(), loaded.buffers(), strict=True):
        assert value.dtype == other.dtype, name
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    "options", [{}, {"init": "kmeans"}, {"ema": "debiased"}, {"revive": 0.5}, {"update_every": 2}]
)
def test_a_loaded_layer_continues_bit_for_bit(options: dict) -> None:
    layer, loaded = FeatureQuantizer(4, 8, **options), FeatureQuantizer(4, 8, **options)
    x = torch.randn(6, 30, 4)
    for step in range(4):
        layer(x[step])
    loaded.load_state_dict(copy.deepcopy(layer.state_dict()))
    for step in range(4, 6):
        assert torch.equal(layer(x[step]), loaded(x[step]))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_fresh_state_loads_and_still_starts_from_data() -> None:
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(20, 4))
    layer.load_state_dict(FeatureQuantizer(4, 8).state_dict())
    x = torch.randn(8, 4)
    out = layer.quantize(x)
    assert torch.equal(out.quantized, x)


def test_another_dictionary_is_refused_with_both_sizes_and_changes_nothing() -> None:
    layer = FeatureQuantizer(4, 8, codebook_dim=2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for other in (FeatureQuantizer(4, 9, codebook_dim=2), FeatureQuantizer(4, 8, codebook_dim=3)):
        k, dim = other.codebook.shape
        with pytest.raises(RuntimeError, match=f"{k} codes of dim {dim}.* has 8 codes of dim 2"):
            layer.load_state_dict(other.state_dict())
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="codebook missing"):
            layer.load_state_dict({k: v for k, v in before.items() if k != "codebook"}, strict=strict)
    with pytest.raises(RuntimeError, match="unexpected entries: extra"):
        layer.load_state_dict({**before, "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"project_in\.weight has shape"):
        layer.load_state_dict(
            {**FeatureQuantizer(4, 8, codebook_dim=2).state_dict(), "project_in.weight": torch.ones(1)}
        )
    with pytest.raises(RuntimeError, match="ema_counts is a list"):
        layer.load_state_dict({**before, "ema_counts": [1.0]})
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_inside_a_model_a_checkpoint_without_dictionary_is_refused(strict: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 8))
    codebook = net[1].codebook.clone()
    with pytest.raises(RuntimeError, match=r"1\.codebook.*missing"):
        net.load_state_dict(nn.Sequential(nn.Linear(4, 4)).state_dict(), strict=strict)
    other = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 16))
    with pytest.raises(RuntimeError, match=r"16 codes of dim 4.* has 8 codes of dim 4"):
        net.load_state_dict(other.state_dict(), strict=strict)
    assert torch.equal(net[1].codebook, codebook)


def test_repr_is_one_line_that_shows_how_the_dictionary_is_doing() -> None:
    layer = FeatureQuantizer(64, 256)
    assert repr(layer).startswith(
        "FeatureQuantizer(64, 256, mode=straight_through, decay=0.9, not started, backend="
    )
    layer(torch.randn(400, 64))
    text = repr(layer)
    assert "usage=100 %, perplexity=" in text
    assert "\n" not in text


def test_data_parallel_warns() -> None:
    with pytest.warns(UserWarning, match="use DistributedDataParallel"):
        FeatureQuantizer(4, 8)._replicate_for_data_parallel()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_projections_work_in_the_dtype_of_the_model(metric: str, dtype: torch.dtype) -> None:
    layer = FeatureQuantizer(8, 16, codebook_dim=3, heads=2, metric=metric).to(dtype)
    x = torch.randn(6, 8, 3, 3, dtype=dtype, requires_grad=True)
    (layer(x).float().square().sum() + commitment_loss(layer)).backward()
    out = layer.eval().quantize(x)
    assert out.quantized.dtype == dtype
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(layer.decode(out.indices), out.quantized, rtol=1e-2, atol=1e-2)


def test_a_model_averaged_by_torch() -> None:
    net = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 8, decay=0.5))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    expected = None
    for _ in range(4):
        net(torch.randn(20, 4))
        average.update_parameters(net)
        codes = net[1].codebook
        expected = codes.clone() if expected is None else 0.75 * expected + 0.25 * codes
    copied = average.module[1]
    torch.testing.assert_close(copied.codebook, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has started
        out = copied.eval().quantize(torch.randn(6, 4))
    assert torch.equal(out.quantized, copied.codebook[out.indices])


@pytest.mark.parametrize("strict", [True, False])
def test_the_advice_for_a_checkpoint_without_quantizer_works(strict: bool) -> None:
    net, plain = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 8)), nn.Sequential(nn.Linear(4, 4))
    net(torch.randn(20, 4))
    expected = copy.deepcopy(net[1].state_dict())
    state = plain.state_dict()
    with pytest.raises(RuntimeError, match=r"layer\.state_dict\(prefix='1\.'\)"):
        net.load_state_dict(state, strict=strict)
    state.update(net[1].state_dict(prefix="1."))
    net.load_state_dict(state, strict=strict)
    assert torch.equal(net[0].weight, plain[0].weight)
    assert all(torch.equal(value, expected[name]) for name, value in net[1].state_dict().items())
