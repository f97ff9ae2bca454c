"""With the tools around a model: checkpointing, compile, precision, copies, LoRA, Trainer, DDP."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from fq_toolkit import inject_latent
from tests.layers.latent import worker as latent_worker
from tests.layers.latent.oracle import build, gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))


def injected(family: str = "gpt2", mode: str = "both", **options: Any) -> Any:
    model = gpt2() if family == "gpt2" else build(family)
    return inject_latent(model, mode, NZ, **{"init_std": 0.7, **options})


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def gradients(model: Any, z: Tensor) -> list[Tensor]:
    model.zero_grad()
    z.grad = None
    model(IDS, latent=z, labels=IDS).loss.backward()
    return [z.grad.clone(), *(p.grad.clone() for p in model.latent_injection.parameters())]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    model, z = without_dropout(injected(family)).train(), torch.randn(4, NZ, requires_grad=True)
    plain = gradients(model, z)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for ours, expected in zip(gradients(model, z), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_reentrant_gradient_checkpointing_is_refused_in_words() -> None:
    model, z = injected().train(), torch.randn(4, NZ)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match=r'reentrant gradient checkpointing loses.*"use_reentrant": False'):
        model(IDS, latent=z)
    model.eval()
    assert model(IDS, latent=z).logits.shape == (4, 5, 40)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_forward_and_gradient_equal_eager(family: str) -> None:
    """By the default backend and without a mask, as people compile; one layer, as each takes seconds."""
    settings = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    model = inject_latent(build(family, "sdpa", **settings), "both", NZ, init_std=0.7)
    z = torch.randn(4, NZ, requires_grad=True)
    expected = model(IDS, latent=z).logits
    (gradient,) = torch.autograd.grad(expected.log_softmax(-1)[..., 5].sum(), z)
    torch._dynamo.reset()
    logits = torch.compile(model, fullgraph=True)(IDS, latent=z).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(logits.log_softmax(-1)[..., 5].sum(), z)
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bfloat16_errs_no_more_than_the_model_does(family: str) -> None:
    """The error with a latent is at most twice what the base model errs in that dtype."""
    model, z = injected(family), torch.randn(4, NZ)
    exact, plain_exact = model(IDS, latent=z).logits, model(IDS).logits
    model.bfloat16()
    logits = model(IDS, latent=z).logits
    assert logits.dtype == torch.bfloat16
    plain_error = float((model(IDS).logits - plain_exact).abs().max()) / float(plain_exact.abs().max())
    error = float((logits - exact).abs().max()) / float(exact.abs().max())
    assert error <= 2 * max(plain_error, 2**-8)
    tokens = model.generate(latent=z, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (4, 5)


def test_autocast_takes_latents_of_any_precision() -> None:
    model = injected().train()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        z = torch.randn(4, NZ, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(IDS, latent=z, labels=IDS)
        out.loss.backward()
        assert z.grad is not None
        assert z.grad.dtype == dtype
        assert torch.isfinite(z.grad).all()


def test_a_deep_copy_stands_on_its_own() -> None:
    model, z = injected(), torch.randn(4, NZ)
    twin = copy.deepcopy(model)
    before = model(IDS, latent=z).logits
    assert torch.equal(twin(IDS, latent=z).logits, before)
    with torch.no_grad():
        twin.latent_injection.memory.weight.zero_()
    assert torch.equal(model(IDS, latent=z).logits, before)
    assert not torch.equal(twin(IDS, latent=z).logits, before)


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_pickle(way: str) -> None:
    model, z = injected(), torch.randn(4, NZ)
    if way == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    assert type(again) is type(model)
    assert torch.equal(again(IDS, latent=z).logits, model(IDS, latent=z).logits)
    assert torch.equal(
        again.generate(latent=z, max_new_tokens=5, do_sample=False),
        model.generate(latent=z, max_new_tokens=5, do_sample=False),
    )


class LowRank(nn.Module):
    """A LoRA adapter around a projection, as the usual libraries put it there."""

    def __init__(self, base: nn.Module, width_in: int, width_out: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(width_in, 2, bias=False), nn.Linear(2, width_out, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_lora_on_top() -> None:
    model, z = injected(), torch.randn(4, NZ)
    before = model(IDS, latent=z).logits
    model.requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn = LowRank(block.attn.c_attn, 16, 48)
    model.latent_injection.requires_grad_(True)
    assert torch.equal(model(IDS, latent=z).logits, before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS, latent=z, labels=IDS).loss.backward()
        optimizer.step()
    for block in model.transformer.h:
        assert float(block.attn.c_attn.up.weight.abs().max()) > 0
    cached = model.generate(latent=z, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, model.generate(latent=z, max_new_tokens=6, do_sample=False, use_cache=False))


class Sentences(torch.utils.data.Dataset):
    """Sentences with a latent each, and a column that nobody takes."""

    def __init__(self) -> None:
        self.z = torch.randn(16, NZ)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = IDS[index % 4]
        return {"input_ids": ids, "labels": ids, "latent": self.z[index]}


def test_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    def trainer(steps: int) -> transformers.Trainer:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, save_steps=3,
            report_to=[],
            learning_rate=1e-2, disable_tqdm=True, seed=0, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        return transformers.Trainer(without_dropout(injected()), arguments, train_dataset=Sentences())

    first = trainer(3)
    start = first.model.latent_injection.memory.weight.clone()
    torch.manual_seed(0)
    first.train()
    trained = first.model.latent_injection.memory.weight.detach()
    assert not torch.equal(trained, start)
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    second = trainer(4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    moved = (second.model.latent_injection.memory.weight - trained).abs().max()
    assert 0 < float(moved) < 0.02, "one step of Adam from where the first run ended"


@pytest.mark.parametrize("mode", ["memory", "both"])
def test_accelerate_fetches_offloaded_weights(mode: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = inject_latent(build("llama"), mode=mode, latent_size=NZ, init_std=0.7)
    ids, z = torch.randint(3, 40, (2, 5)), torch.randn(2, NZ)
    expected = model.generate(ids, latent=z, max_new_tokens=6, do_sample=False)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.latent_injection.memory.weight.is_meta
    assert torch.equal(model.generate(ids, latent=z, max_new_tokens=6, do_sample=False), expected)
    offloaded = accelerate.cpu_offload(build("llama"), execution_device="cpu")
    with pytest.raises(ValueError, match="offloaded by accelerate; inject first and offload afterwards"):
        inject_latent(offloaded, mode=mode)


def test_accelerate_prepares_it() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, z = injected(), torch.randn(4, NZ)
    before = model(IDS, latent=z).logits
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    out = prepared(IDS, latent=z, labels=IDS)
    assert torch.equal(out.logits, before)
    accelerator.backward(out.loss)
    optimizer.step()
    assert not torch.equal(prepared(IDS, latent=z).logits, before)
    assert accelerator.unwrap_model(prepared) is model


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)
def test_ddp_equals_the_whole_batch_and_steps_without_a_latent_pass(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(latent_worker.run, args=(str(tmp_path),), nprocs=2)
    model, steps = latent_worker.build(), latent_worker.steps()
    of_rank = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    for step, (ids, latent) in enumerate(steps):
        model.zero_grad()
        model(ids, labels=ids, latent=latent).loss.backward()
        whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        for ranks in of_rank:
            for ours, expected in zip(ranks[step], whole, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_without_a_latent_nothing_of_the_injection_is_touched() -> None:
    model = injected().train()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in model.latent_injection.parameters())
