"""Projections whose weights are stored in 4 or 8 bits: a latent is taken to the precision of computation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit import inject_latent, load_latent
from tests.layers.latent.oracle import SIZES, build, gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))


class Stored(nn.Module):
    """A linear layer as the usual libraries quantize it: integers as a parameter, scales beside."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / 100
        self.offset = 0 if dtype.is_signed else 128
        codes = weight / scale + self.offset
        codes = codes if dtype.is_floating_point else codes.round()
        self.weight = nn.Parameter(codes.to(dtype), requires_grad=False)
        self.bias = linear.bias
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype in (torch.float32, torch.bfloat16, torch.float16), x.dtype
        weight = (self.weight.float() - self.offset) * self.scale
        return F.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quantize(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Stored(child, dtype))
        else:
            quantize(child, dtype)


DTYPES = [torch.uint8, torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_quantized_projections_equal_what_their_weights_say(
    mode: str, projector: str, computed: torch.dtype, stored: torch.dtype
) -> None:
    model = inject_latent(build("llama").to(computed), mode, NZ, projector=projector, init_std=0.7)
    z = torch.randn(4, NZ)
    plain = model(IDS).logits
    quantize(model.latent_injection, stored)
    logits = model(IDS, latent=z).logits
    expected = inject_latent(build("llama").to(computed), mode, NZ, projector=projector)
    for name, module in model.latent_injection.named_modules():
        if isinstance(module, Stored):
            linear = expected.latent_injection.get_submodule(name)
            linear.weight.data = ((module.weight.float() - module.offset) * module.scale).to(computed)
            linear.bias = module.bias
    assert torch.equal(logits, expected(IDS, latent=z).logits)
    assert not torch.equal(logits, plain)
    assert not torch.equal(model(IDS, latent=-z).logits, logits)
    assert model.generate(latent=z, max_new_tokens=3).shape == (4, 4)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("mode", ["memory", "embedding"])
def test_a_quantized_projector_of_the_callers_own(mode: str, stored: torch.dtype) -> None:
    width = SIZES["width"] * (SIZES["layers"] if mode == "memory" else 1)
    for dtype in (torch.float32, torch.bfloat16):
        own = nn.Sequential(nn.Linear(NZ, 8), nn.Tanh(), nn.Linear(8, width)).to(dtype)
        quantize(own, stored)
        model, z = inject_latent(gpt2().to(dtype), mode, NZ, projector=own), torch.randn(4, NZ)
        assert not torch.equal(model(IDS, latent=z).logits, model(IDS, latent=-z).logits)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("mode", ["memory", "both"])
def test_an_injection_into_a_quantized_model(mode: str, stored: torch.dtype) -> None:
    model = build("llama").bfloat16()
    quantize(model.model.layers, stored)
    inject_latent(model, mode, NZ, init_std=0.7)
    assert {p.dtype for p in model.latent_injection.parameters()} == {torch.bfloat16}
    z = torch.randn(4, NZ, requires_grad=True)
    logits = model(IDS, latent=z).logits
    logits.float().square().mean().backward()
    assert z.grad is not None
    assert (z.grad != 0).any()


def test_a_model_all_of_whose_weights_are_stored_in_eight_bits_takes_the_latent_as_it_is() -> None:
    model = inject_latent(build("llama"), "memory", NZ, init_std=0.7)
    quantize(model.latent_injection, torch.int8)
    seen: list[torch.dtype] = []
    model.latent_injection.register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model(IDS, latent=torch.randn(4, NZ, dtype=dtype))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_torchao_from_end_to_end(mode: str, projector: str, tmp_path: Path) -> None:
    ao: Any = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = inject_latent(build("llama"), mode, NZ, projector=projector, init_std=0.7)
    z = torch.randn(4, NZ)
    expected = model(IDS, latent=z).logits
    model.save_pretrained(tmp_path)
    loaded = load_latent(tmp_path)
    ao.quantize_(loaded, ao.Int8WeightOnlyConfig())
    logits = loaded(IDS, latent=z).logits
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
