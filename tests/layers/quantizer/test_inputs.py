"""Bad settings and bad inputs: a clear error, and nothing half-written."""

import numpy as np
import pytest
import torch
from torch import nn

from fq_toolkit.layers import (
    FeatureQuantizer,
    ResidualQuantizer,
    codebook_report,
    commitment_loss,
    quantize,
    quantize_discriminator,
)
from fq_toolkit.layers.quantizer.updates import commit_updates

SETTINGS = [
    (dict(dim=0, num_codes=4), ValueError, "dim must be at least 1, got 0"),
    (dict(dim=4, num_codes=0), ValueError, "num_codes must be at least 1, got 0"),
    (dict(dim=4, num_codes=2.0), TypeError, "num_codes must be an integer, got 2.0"),
    (dict(dim=4, num_codes=4, decay=1.0), ValueError, r"decay must be in \[0, 1\), got 1"),
    (dict(dim=4, num_codes=4, decay=-0.1), ValueError, "decay must be in"),
    (dict(dim=4, num_codes=4, decay=float("nan")), ValueError, "decay must be in"),
    (dict(dim=4, num_codes=4, commitment=-1), ValueError, "commitment must be in"),
    (dict(dim=4, num_codes=4, strength=1.5), ValueError, "strength must be in"),
    (dict(dim=4, num_codes=4, mode="straight"), ValueError, "mode must be one of 'straight_through'"),
    (dict(dim=4, num_codes=4, init="random"), ValueError, "init must be one of"),
    (dict(dim=4, num_codes=4, ema="plain"), ValueError, "ema must be one of"),
    (dict(dim=4, num_codes=4, precision="half"), ValueError, "precision must be one of"),
    (dict(dim=4, num_codes=4, metric="l1"), ValueError, "metric must be one of"),
    (dict(dim=4, num_codes=4, nonfinite="ignore"), ValueError, "nonfinite must be one of"),
    (dict(dim=4, num_codes=4, update="always"), ValueError, "update must be one of"),
    (dict(dim=4, num_codes=4, update="manual", update_every=2), ValueError, "commit_updates"),
    (dict(dim=4, num_codes=4, update_every=0), ValueError, "update_every must be at least 1"),
    (dict(dim=5, num_codes=4, heads=2), ValueError, "dim=5 cannot be split into heads=2"),
    (dict(dim=4, num_codes=4, codebook_dim=0), ValueError, "codebook_dim must be at least 1"),
    (dict(dim=4, num_codes=4, preset="fqgan-tensorflow"), ValueError, "did you mean 'fqgan-tf'"),
    (dict(dim=4, num_codes=4, revive=-1), ValueError, "revive must be in"),
]


@pytest.mark.parametrize(("settings", "error", "message"), SETTINGS)
def test_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FeatureQuantizer(**settings)


INPUTS = [
    (torch.zeros(2, 5, 3, 3), {}, ValueError, r"have 5 channels on axis 1 of shape \(2, 5, 3, 3\).*dim=4"),
    (torch.zeros(2, 4, 5), {}, ValueError, r"taken for \(B, L, C\).*dim=4.*channel_dim=1"),
    (torch.zeros(4), {}, ValueError, "need a batch and a channel axis"),
    (torch.zeros(2, 4, dtype=torch.int64), {}, TypeError, "got torch.int64"),
    (torch.zeros(2, 4, dtype=torch.complex64), {}, TypeError, "got torch.complex64"),
    (torch.zeros(2, 4, dtype=torch.bool), {}, TypeError, "got torch.bool"),
    ([[0.0] * 4], {}, TypeError, "got list"),
    (
        torch.zeros(2, 3, 4),
        {"mask": torch.ones(2, 4).bool()},
        ValueError,
        r"shape \(2, 4\), expected \(2, 3\)",
    ),
    (torch.zeros(2, 3, 4), {"mask": torch.ones(2, 3)}, TypeError, "must be a bool tensor.*torch.float32"),
    (torch.zeros(2, 3, 4), {"lengths": torch.ones(2)}, TypeError, "must be an integer tensor.*torch.float32"),
    (torch.zeros(2, 3, 4), {"lengths": [1, 2]}, TypeError, "got list"),
    (torch.zeros(2, 3, 4), {"lengths": torch.ones(3).long()}, ValueError, r"shape \(3,\), expected \(2,\)"),
    (torch.zeros(2, 4, 3, 3), {"lengths": torch.ones(2).long()}, ValueError, "one position axis"),
    (
        torch.zeros(2, 3, 4),
        {"lengths": torch.ones(2).long(), "mask": torch.ones(2, 3).bool()},
        ValueError,
        "not both",
    ),
]


@pytest.mark.parametrize(("x", "extra", "error", "message"), INPUTS)
def test_features(x: object, extra: dict, error: type[Exception], message: str) -> None:
    layer = FeatureQuantizer(4, 8)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(error, match=message):
        layer(x, **extra)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("channel_dim", "message"), [(0, "batch axis"), (7, "does not exist"), (-4, "batch axis")]
)
def test_channel_dim(channel_dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureQuantizer(4, 8, channel_dim=channel_dim)(torch.zeros(2, 4, 4, 4))


def test_decode() -> None:
    layer = FeatureQuantizer(4, 8, init="normal")
    with pytest.raises(ValueError, match="run from 0 to 8; this dictionary has codes 0 to 7"):
        layer.decode(torch.tensor([0, 8]))
    with pytest.raises(TypeError, match="must be integers"):
        layer.decode(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="axis of 2 heads"):
        FeatureQuantizer(4, 8, heads=2).decode(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="no projection back"):
        FeatureQuantizer(4, 8, codebook_dim=2, mode="regularize").decode(torch.zeros(5, dtype=torch.int64))


def test_functional() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"codebook must be \(K, C\)"):
        quantize(x, torch.zeros(4))
    with pytest.raises(ValueError, match="at least one code"):
        quantize(x, torch.zeros(0, 4))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        quantize(x, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="have 4 channels"):
        quantize(x, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="precision"):
        quantize(x, torch.zeros(2, 4), precision="bf16")


def test_residual() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 1"):
        ResidualQuantizer(4, 8, num_levels=0)
    with pytest.raises(ValueError, match="no heads"):
        ResidualQuantizer(4, 8, num_levels=2, heads=2)
    with pytest.raises(ValueError, match="euclidean"):
        ResidualQuantizer(4, 8, num_levels=2, metric="cosine")
    with pytest.raises(ValueError, match="axis of 1 to 2 levels"):
        ResidualQuantizer(4, 8, num_levels=2).decode(torch.zeros(5, 3, dtype=torch.int64))


def test_models_without_quantizers() -> None:
    with pytest.raises(ValueError, match="Linear contains no FeatureQuantizer"):
        commitment_loss(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match='update="manual"'):
        commit_updates(FeatureQuantizer(2, 2))


def test_numbers_of_numpy_are_numbers() -> None:
    layer = FeatureQuantizer(
        np.int64(4), np.int32(8), decay=np.float32(0.5), strength=np.float64(0.5), heads=np.int64(2)
    )
    plain = FeatureQuantizer(4, 8, decay=0.5, strength=0.5, heads=2)
    x = torch.randn(6, 4)
    assert torch.equal(layer(x), plain(x))
    assert type(layer.num_codes) is int
    assert type(layer.decay) is float
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    handle = quantize_discriminator(net, layers=["0"], num_codes=np.int64(8), example_inputs=x)
    assert handle.layers[0].num_codes == 8


def test_a_report_on_the_meta_device_is_refused() -> None:
    with pytest.raises(ValueError, match="0 is on the meta device"):
        codebook_report(torch.nn.Sequential(FeatureQuantizer(4, 8, device="meta")))


def test_what_cannot_be_scripted_or_nested_says_so() -> None:
    for layer in (FeatureQuantizer(4, 8), ResidualQuantizer(4, 8, num_levels=2)):
        for model in (layer, nn.Sequential(nn.Linear(4, 4), layer)):
            with pytest.raises(TypeError, match=r"torch\.export"):
                torch.jit.script(model)
        ragged = [torch.randn(3, 4), torch.randn(5, 4)]
        for kind in (torch.strided, torch.jagged):
            with pytest.raises(TypeError, match=r"nested.*lengths"):
                layer(torch.nested.nested_tensor(ragged, layout=kind))
        with pytest.raises(TypeError, match="dense"):
            layer(torch.randn(3, 4).to_sparse())
