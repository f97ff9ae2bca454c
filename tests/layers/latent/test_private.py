"""Private names of other libraries stand in one file, and a model works or refuses by name without each."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from fq_toolkit import inject_latent
from fq_toolkit.layers.latent import private
from fq_toolkit.layers.latent.attention import merge
from tests.layers.latent.oracle import build, gpt2

FOLDER = Path(private.__file__).parent
NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))
# Overridden names stand where they are overridden; `_replace` is public, and `_core` a path inside pickles.
ALLOWED = {
    "_keys_to_ignore_on_load_unexpected",  # of a class of models
    "_get_candidate_generator",  # of transformers' generation
    "_load_from_state_dict",  # of nn.Module
    "_modules",  # of nn.Module
    "_replace",
    "_core",
}


def underscored(tree: ast.AST) -> set[str]:
    """Return the names with one leading underscore that are looked up as attributes, or stand in strings."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    names |= {text for text in strings if isinstance(text, str) and re.fullmatch(r"_[a-z]\w+", text)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def defined(tree: ast.AST) -> set[str]:
    """Return the names of our own: functions, classes, and what is assigned in them or at the top."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {t.attr for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"}
    return names


def test_private_names_of_others_stand_in_one_file() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in FOLDER.rglob("*.py")}
    ours = set().union(*map(defined, trees.values())) - ALLOWED
    for path, tree in trees.items():
        names = {n for n in underscored(tree) - ours - ALLOWED if not n.startswith("_latent_")}
        assert path.name == "private.py" or not names, f"{path.name} uses {names}"


def test_the_names_are_there() -> None:
    """Else the way out is all that is tested."""
    assert private.HAS_FLASH_ON_CPU
    model = gpt2()
    assert hasattr(model.config, "_attn_implementation_internal")
    assert hasattr(type(model), "_can_set_attn_implementation")
    assert hasattr(model.transformer.h[0].attn, "_upcast_and_reordered_attn")
    assert hasattr(transformers.GPT2LMHeadModel, "_get_candidate_generator")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert blocks
    assert not any(map(private.checkpoints_reentrantly, blocks))


def test_without_the_flash_kernels_slots_are_put_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = inject_latent(gpt2(), latent_size=NZ, init_std=0.7, slots=2), torch.randn(4, NZ)

    def loss_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(IDS, latent=z, labels=IDS).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = loss_and_gradients()
    monkeypatch.setattr(merge, "HAS_FLASH_ON_CPU", False)
    monkeypatch.setattr(merge, "flash_on_cpu", None)
    torch.testing.assert_close(loss_and_gradients(), expected, rtol=1e-4, atol=1e-5)


def test_without_the_name_behind_it_the_property_of_a_config_is_set() -> None:
    config = SimpleNamespace(_attn_implementation="sdpa")
    private.set_implementation(config, "latent_sdpa")
    assert private.implementation(config) == "latent_sdpa"
    assert vars(config) == {"_attn_implementation": "latent_sdpa"}
    assert private.implementation(SimpleNamespace()) is None


def test_without_an_answer_the_probe_finds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.PreTrainedModel, "_can_set_attn_implementation")
    assert inject_latent(gpt2(), latent_size=NZ).latent_spec.layers == (0, 1, 2)
    with pytest.raises(ValueError, match="cannot work in BloomForCausalLM"):
        inject_latent(build("bloom"), latent_size=NZ)


def test_upcast_attention_that_is_gone_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"attn_implementation": "eager", "reorder_and_upcast_attn": True}
    plain = inject_latent(gpt2(attn_implementation="eager"), latent_size=NZ, init_std=0.7)
    upcast = inject_latent(gpt2(**settings), latent_size=NZ, init_std=0.7)
    upcast.load_state_dict(plain.state_dict())
    z = torch.randn(4, NZ)
    torch.testing.assert_close(
        upcast(IDS, latent=z).logits, plain(IDS, latent=z).logits, rtol=1e-4, atol=1e-4
    )
    attention = type(upcast.transformer.h[0].attn)
    monkeypatch.delattr(attention, "_upcast_and_reordered_attn")
    with pytest.raises(ValueError, match="reorder_and_upcast_attn=False"):
        upcast(IDS, latent=z)


def test_checkpointing_that_does_not_tell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inject_latent(gpt2(), latent_size=NZ)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(IDS, latent=torch.randn(4, NZ))
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            del module._gradient_checkpointing_func
    with pytest.raises(ValueError, match="reentrant gradient checkpointing loses"):
        model(IDS, latent=torch.randn(4, NZ))


def test_a_number_changes_with_every_write() -> None:
    x = torch.zeros(2)
    before = private.version(x)
    x.add_(1)
    assert private.version(x) != before
    with torch.inference_mode():
        assert private.version(torch.zeros(2)) == 0
