"""torch.export and ONNX of the layer in eval."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer


class Tokenizer(nn.Module):
    """Features in, quantized features and indices out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.layer.quantize(x)
        return out.quantized, out.indices


CASES = {
    "plain": FeatureQuantizer(8, 32),
    "projected cosine heads": FeatureQuantizer(8, 32, codebook_dim=3, metric="cosine", heads=2),
    "regularize": FeatureQuantizer(8, 32, mode="regularize"),
    "residual": ResidualQuantizer(8, 32, num_levels=3),
}


def trained(name: str) -> Tokenizer:
    layer = CASES[name]
    layer.train()
    layer(torch.randn(16, 8, 4, 4))
    return Tokenizer(layer).eval()


@pytest.mark.parametrize("name", CASES)
def test_torch_export_with_dynamic_batch(name: str) -> None:
    model = trained(name)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(4, 8, 4, 4),), dynamic_shapes={"x": {0: batch}})
    for n in (2, 7):
        x = torch.randn(n, 8, 4, 4)
        expected, got = model(x), program.module()(x)
        torch.testing.assert_close(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("name", ["plain", "projected cosine heads", "residual"])
def test_onnx_runs_and_finds_the_same_indices(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    model = trained(name)
    path = tmp_path / "quantizer.onnx"
    batch = torch.export.Dim("batch", min=2, max=64)
    torch.onnx.export(
        model,
        (torch.randn(4, 8, 4, 4),),
        str(path),
        dynamo=True,
        dynamic_shapes={"x": {0: batch}},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (2, 5):
        x = torch.randn(n, 8, 4, 4)
        quantized, indices = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x)
        assert (torch.from_numpy(indices) == expected[1]).all()
        torch.testing.assert_close(torch.from_numpy(quantized), expected[0], rtol=1e-4, atol=1e-5)
