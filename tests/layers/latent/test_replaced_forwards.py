"""A forward that somebody assigned to the model: a latent that is given is read, or the call fails."""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers

from fq_toolkit import inject_latent, remove_latent
from tests.layers.latent.oracle import build, gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))
MODES = ["memory", "embedding", "both"]


def z() -> torch.Tensor:
    return torch.randn(4, NZ, generator=torch.Generator().manual_seed(3))


def inject(model: Any, mode: str = "memory", **options: Any) -> Any:
    torch.manual_seed(5)
    return inject_latent(model, mode, NZ, init_std=0.7, **options)


def fused(
    self: Any, input_ids: Any = None, labels: Any = None, inputs_embeds: Any = None, **kwargs: Any
) -> Any:
    """A causal model's forward written anew, as fused losses and trainers of preferences bring it."""
    hidden = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs).last_hidden_state
    return transformers.modeling_outputs.CausalLMOutputWithPast(logits=self.lm_head(hidden))


def deaf(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
    """The same, with keywords left behind."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return transformers.modeling_outputs.CausalLMOutputWithPast(logits=self.lm_head(hidden))


def by_method(model: Any) -> None:
    model.forward = MethodType(fused, model)


def by_partial(model: Any) -> None:
    model.forward = functools.partial(fused, model)


def by_closure(model: Any) -> None:
    plain = model.forward
    model.forward = lambda *args, **kwargs: plain(*args, **kwargs)


def by_dict(model: Any) -> None:
    vars(model)["forward"] = MethodType(fused, model)


def by_mixed_precision(model: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def by_hooks(model: Any) -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook("cpu", io_same_device=True))


BEFORE = [by_method, by_partial, by_closure, by_dict, by_mixed_precision, by_hooks]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replace", BEFORE)
def test_an_injection_goes_around_what_was_assigned_before(replace: Callable[[Any], None], mode: str) -> None:
    model = build("llama")
    expected = inject(build("llama"), mode)(IDS, latent=z()).logits
    replace(model)
    plain, attributes = model(IDS).logits, {name for name in vars(model) if name != "_modules"}
    inject(model, mode)
    exact = replace is not by_mixed_precision
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, **tolerance)
    torch.testing.assert_close(model.forward(IDS, latent=z()).logits, expected, **tolerance)
    assert torch.equal(model(IDS).logits, plain)
    remove_latent(model)
    assert torch.equal(model(IDS).logits, plain)
    assert {name for name in vars(model) if name != "_modules"} == attributes
    inject(model, mode)
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, **tolerance)


@pytest.mark.parametrize("mode", ["memory", "both"])
def test_an_injection_refuses_a_forward_that_drops_keywords(mode: str) -> None:
    model = build("llama")
    model.forward = MethodType(deaf, model)
    with pytest.raises(ValueError, match=rf"replaced by {__name__}\.deaf; take that back"):
        inject(model, mode)
    assert type(model) is transformers.LlamaForCausalLM
    assert "latent_injection" not in model.config.to_dict()
    del model.forward
    inject(model, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replace", [by_closure, by_mixed_precision, by_hooks])
def test_what_leads_to_our_forward_may_be_put_around_it(replace: Callable[[Any], None], mode: str) -> None:
    model = build("llama")
    before = model(IDS).logits
    inject(model, mode)
    expected = model(IDS, latent=z()).logits
    replace(model)
    tolerance = {"rtol": 0.05, "atol": 0.1} if replace is by_mixed_precision else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, **tolerance)
    torch.testing.assert_close(model.forward(IDS, latent=z()).logits, expected, **tolerance)
    ids = model.generate(IDS, latent=z(), max_new_tokens=3, do_sample=False)
    assert ids.shape == (4, 8)
    remove_latent(model)
    torch.testing.assert_close(model(IDS).logits, before, **tolerance)
    if replace is not by_hooks:  # which find the model's own again
        with pytest.raises(TypeError, match="latent of this LlamaForCausalLM was removed"):
            model(IDS, latent=z())
    inject(model, mode)
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, **tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replace", [by_method, by_partial, by_dict])
def test_what_does_not_lead_there_fails_by_name(replace: Callable[[Any], None], mode: str) -> None:
    model = inject(build("llama"), mode)
    plain = model(IDS).logits
    replace(model)
    name = rf"{__name__}\.fused has taken the place of this LlamaForCausalLM's forward"
    with pytest.raises(RuntimeError, match=name):
        model(IDS, latent=z())
    if replace is not by_dict:
        with pytest.raises(RuntimeError, match=name):
            model.forward(IDS, latent=z())
    with pytest.raises((RuntimeError, ValueError), match=rf"{name}|not used by the model: \['latent'\]"):
        model.generate(IDS, latent=z(), max_new_tokens=2)
    torch.testing.assert_close(model(IDS).logits, plain, rtol=1e-5, atol=1e-5)
    remove_latent(model)
    torch.testing.assert_close(model(IDS).logits, plain, rtol=1e-5, atol=1e-5)
    inject(model, mode)
    model(IDS, latent=z())


def test_a_forward_assigned_to_the_class_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inject(build("llama"))
    monkeypatch.setattr(type(model), "forward", fused)
    with pytest.raises(RuntimeError, match=r"fused has taken the place"):
        model(IDS, latent=z())


def test_a_forward_assigned_to_the_base_class_is_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inject(build("llama"))
    expected = model(IDS, latent=z()).logits
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", fused)
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_replaced_forward_keeps_the_signature_that_trainers_choose_columns_by() -> None:
    import inspect

    for replace in (by_method, by_partial, by_mixed_precision):
        model = inject(build("llama"))
        replace(model)
        assert "latent" in inspect.signature(model.forward).parameters
        assert next(iter(inspect.signature(model.forward).parameters)) == "input_ids"


@pytest.mark.parametrize("replace", [None, by_method, by_partial])
def test_copies_run_their_own_weights(replace: Callable[[Any], None] | None) -> None:
    model = build("llama")
    if replace is not None:
        replace(model)
    inject(model)
    twin = copy.deepcopy(model)
    expected = model(IDS, latent=z()).logits
    assert torch.equal(twin(IDS, latent=z()).logits, expected)
    with torch.no_grad():
        twin.latent_injection.memory.weight.zero_()
        twin.lm_head.weight.zero_()
    assert torch.equal(model(IDS, latent=z()).logits, expected)
    assert not torch.equal(twin(IDS, latent=z()).logits, expected)
    by_partial(model)
    twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="fused has taken the place"):
        twin(IDS, latent=z())
    if replace is by_method:
        return  # pickle looks methods up by their names
    again = pickle.loads(pickle.dumps(model))
    with pytest.raises(RuntimeError, match="fused has taken the place"):
        again(IDS, latent=z())


def test_accelerate_takes_its_wrappers_off_in_both_orders() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    for first in (True, False):
        model = build("llama")
        if first:
            inject(model)
        by_mixed_precision(model)
        if not first:
            inject(model)
        expected = model(IDS, latent=z()).logits
        accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)
        torch.testing.assert_close(model(IDS, latent=z()).logits, expected, rtol=0.05, atol=0.1)
        model = build("llama")
        if first:
            inject(model)
        by_hooks(model)
        if not first:
            inject(model)
        expected = model(IDS, latent=z()).logits
        accelerate.hooks.remove_hook_from_module(model)
        assert torch.equal(model(IDS, latent=z()).logits, expected)
        assert not hasattr(model, "_old_forward")


@pytest.mark.parametrize("wrapped", [None, "before", "after"])
def test_compiled_with_a_forward_of_somebody_elses(wrapped: str | None) -> None:
    model = build("llama")
    if wrapped == "before":
        by_method(model)
    inject(model)
    if wrapped == "after":
        plain = type(model).forward

        def around(self: Any, *args: Any, **kwargs: Any) -> Any:
            return plain(self, *args, **kwargs)

        model.forward = MethodType(around, model)
    expected = model(IDS, latent=z()).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS, latent=z()).logits, expected, rtol=1e-5, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(IDS, latent=z())


def test_a_forward_that_was_compiled_by_itself() -> None:
    model = inject(build("llama"))
    expected = model(IDS, latent=z()).logits
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(model(IDS, latent=z()).logits, expected, rtol=1e-5, atol=1e-5)


def trained_plain(folder: Path, model: Any) -> None:
    """Train a model by transformers' Trainer in bfloat16, which assigns a forward to it."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, bf16=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    transformers.Trainer(model, arguments, train_dataset=data).train()


def test_a_latent_for_a_model_that_trainer_has_trained_in_bfloat16(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = gpt2()
    trained_plain(tmp_path, model)
    model.eval()
    assert "forward" in vars(model)
    plain = model(IDS).logits
    inject(model, "both")
    moved = model(IDS, latent=z()).logits
    assert not torch.equal(moved, plain)
    assert not torch.equal(model(IDS, latent=-z()).logits, moved)
    remove_latent(model)
    assert torch.equal(model(IDS).logits, plain)
    injected = inject(gpt2())
    trained_plain(tmp_path, injected)
    injected.eval()
    assert not torch.equal(injected(IDS, latent=z()).logits, injected(IDS).logits)
    remove_latent(injected)
    injected(IDS)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_spread_by_a_device_map(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    build("llama").save_pretrained(tmp_path / "m")
    parts = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m",
        device_map={**parts, "model.rotary_emb": "cpu", "lm_head": "cpu"},
        offload_folder=tmp_path / "off",
    )
    expected = inject(build("llama"), mode)(IDS, latent=z()).logits
    inject(model, mode)
    torch.testing.assert_close(model(IDS, latent=z()).logits, expected, rtol=1e-5, atol=1e-5)
    remove_latent(model)
    torch.testing.assert_close(model(IDS).logits, build("llama")(IDS).logits, rtol=1e-5, atol=1e-5)
