"""PrevalentModel against the released architecture written out, its names, its size, its files."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fq_toolkit import VLNPretrainingHead
from fq_toolkit.prevalent import DataError, PrevalentConfig, PrevalentModel
from fq_toolkit.prevalent.model.encoder import count_parameters
from fq_toolkit.prevalent.model.released_names import encoder_state
from fq_toolkit.training.errors import ConfigError
from tests.prevalent.model.released_oracle import released_forward, released_weights

SIZES = {"hidden": 12, "text_layers": 2, "cross_layers": 3, "vocab": 30, "vision": 7, "actions": 5}
HEADS = 3


@pytest.fixture
def config() -> PrevalentConfig:
    return PrevalentConfig(
        vocab_size=30, hidden_size=12, num_heads=HEADS, text_layers=2, cross_layers=3, intermediate_size=48,
        vision_size=7, max_positions=40, dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip


@pytest.fixture
def model(config: PrevalentConfig) -> PrevalentModel:
    return PrevalentModel(config).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return texts of different length, where they are, and panoramas."""
    mask = torch.arange(9)[None] < torch.tensor([[9], [4], [1]])
    return torch.randint(5, 30, (3, 9)) * mask, mask, torch.randn(3, 6, 7, dtype=torch.float64)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_parity_with_the_released_architecture(model: PrevalentModel, prefix: str) -> None:
    released = released_weights(**SIZES)
    model.double().load_state_dict({prefix + name: value for name, value in released.items()})
    head = VLNPretrainingHead(12, 30, 5, tie_to=model.get_input_embeddings()).double()
    head.load_state_dict({prefix + name: value for name, value in released.items()})
    ids, mask, views = inputs()

    language, pooled, words, actions = released_forward(released, ids, mask, views, HEADS)
    out = model(ids, mask, views)
    logits = head(out.language, out.pooled)
    torch.testing.assert_close(out.language[mask], language[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(out.pooled, pooled, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.mlm_logits[mask], words[mask], rtol=0, atol=1e-11)
    torch.testing.assert_close(logits.action_logits, actions, rtol=0, atol=1e-12)


def test_loss_and_gradients_are_those_of_the_released_architecture(model: PrevalentModel) -> None:
    released = {name: value.requires_grad_() for name, value in released_weights(**SIZES).items()}
    model.double().load_state_dict(released)
    head = VLNPretrainingHead(12, 30, 5, tie_to=model.get_input_embeddings()).double()
    head.load_state_dict(released)
    ids, mask, views = inputs()
    labels = torch.where(torch.rand(ids.shape) < 0.4, ids, -1).where(mask, -1)
    goals = torch.tensor([0, 4, 2])

    _, _, words, actions = released_forward(released, ids, mask, views, HEADS)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(words.flatten(0, 1), labels.flatten(), ignore_index=-1)
    expected = expected + cross_entropy(actions, goals)
    expected.backward()
    out = model(ids, mask, views)
    loss = head(out.language, out.pooled, labels, goals).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    gradients = {
        name: value.grad
        for name, value in released.items()
        if value.grad is not None and not name.startswith("mlmhead.predictions.decoder")
    }
    embedding = gradients["bert.embeddings.word_embeddings.weight"].clone()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    renamed = encoder_state(gradients)
    # The table's row of padding gets its gradient from the output alone.
    torch.testing.assert_close(
        ours["embeddings.word_embeddings.weight"][1:], embedding[1:], rtol=0, atol=1e-11
    )
    unused = {name for name, gradient in ours.items() if gradient is None}
    assert all(name.startswith("cross_layers.2.vision") for name in unused)
    for name in ours.keys() - unused - {"embeddings.word_embeddings.weight"}:
        torch.testing.assert_close(ours[name], renamed[name], rtol=0, atol=1e-11, msg=name)


def test_every_released_weight_of_the_encoder_has_one_place(model: PrevalentModel) -> None:
    released = {n: w for n, w in released_weights(**SIZES).items() if n.startswith("bert.")}
    renamed = encoder_state(released)
    assert {n: w.shape for n, w in renamed.items()} == {n: w.shape for n, w in model.state_dict().items()}
    assert sum(w.numel() for w in renamed.values()) == sum(w.numel() for w in released.values())
    left = [weight.flatten() for weight in renamed.values()]
    torch.testing.assert_close(
        torch.cat(left).sort().values, torch.cat([w.flatten() for w in released.values()]).sort().values
    )


def test_a_released_weight_that_is_missing_or_unknown_is_named(model: PrevalentModel) -> None:
    released = released_weights(**SIZES)
    del released["bert.addlayer.1.visual_attention.att.key.weight"]
    released["bert.lalayer.0.surprise.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)cross_layers.1.cross.qkv.weight.*bert.lalayer.0.surprise"):
        model.load_state_dict(released)


def test_the_old_names_of_norms_are_accepted(model: PrevalentModel) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in released_weights(**SIZES).items()
    }
    model.load_state_dict(old)
    torch.testing.assert_close(
        model.text_layers[1].feed_forward.norm.weight.double(),
        old["bert.lalayer.1.output.LayerNorm.gamma"],
        rtol=0,
        atol=1e-6,
    )


def test_the_released_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = PrevalentModel()
        head = VLNPretrainingHead(768, 30522, 36, tie_to=model.get_input_embeddings())
    assert count_parameters(model, head) == 156_701_022


def test_a_cache_of_the_text_changes_nothing(model: PrevalentModel) -> None:
    ids, mask, views = inputs()
    plain = model(ids, mask, views.float())
    cached = model(None, None, views.float(), cache=model.cache_text(ids, mask))
    assert torch.equal(plain.language, cached.language)
    assert torch.equal(plain.pooled, cached.pooled)


def test_padding_changes_nothing(model: PrevalentModel) -> None:
    ids, mask, views = inputs()
    views = views.float()
    long = model(ids[1:2], mask[1:2], views[1:2])
    short = model(ids[1:2, :4], None, views[1:2])
    torch.testing.assert_close(long.language[:, :4], short.language, rtol=0, atol=1e-6)
    some = torch.tensor([[True, True, False, False, False, False]])
    half = model(ids[1:2, :4], None, views[1:2], some)
    few = model(ids[1:2, :4], None, views[1:2, :2])
    torch.testing.assert_close(half.pooled, few.pooled, rtol=0, atol=1e-6)
    assert model(ids[:1], torch.zeros(1, 9), views[:1]).pooled.isfinite().all()


def test_cross_modal_layers_can_begin_as_the_identity(config: PrevalentConfig) -> None:
    torch.manual_seed(0)
    plain = PrevalentModel(config)
    torch.manual_seed(0)
    still = PrevalentModel(dataclasses.replace(config, cross_init=0.0)).eval()
    ids, mask, views = inputs()
    text = still.cache_text(ids, mask).states
    torch.testing.assert_close(still(ids, mask, views.float()).language, text, rtol=0, atol=1e-5)
    for (name, ours), theirs in zip(still.named_parameters(), plain.parameters(), strict=True):
        scaled = name.startswith("cross_layers") and name.endswith(("out.weight", "contract.weight"))
        assert torch.equal(ours, theirs * (0.0 if scaled else 1.0)), name


def test_vision_reaches_words_and_words_reach_the_action(model: PrevalentModel) -> None:
    ids, mask, views = inputs()
    views = views.float().requires_grad_()
    out = model(ids, mask, views)
    (gradient,) = torch.autograd.grad(out.language[:, -1].square().sum(), views)
    assert (gradient.abs().sum((1, 2)) > 0).all()
    other = ids.clone()
    other[0, 5] = 5 + (ids[0, 5] - 4) % 25
    moved = model(other, mask, views).pooled - out.pooled
    assert moved[0].abs().max() > 1e-4
    assert (moved[1:] == 0).all()


def test_it_is_saved_and_read_back(model: PrevalentModel, tmp_path: Path) -> None:
    ids, mask, views = inputs()
    model.save_pretrained(tmp_path / "run" / "model")
    for folder in (tmp_path / "run" / "model", tmp_path / "run"):
        again = PrevalentModel.from_pretrained(folder).eval()
        assert again.config == model.config
        assert torch.equal(again(ids, mask, views.float()).pooled, model(ids, mask, views.float()).pooled)
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_damaged_files_are_named(model: PrevalentModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        PrevalentModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        PrevalentModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=r"cannot read .*model\.safetensors"):
        PrevalentModel.from_pretrained(tmp_path)
    larger = PrevalentModel(dataclasses.replace(model.config, vocab_size=31))
    larger.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"vocab_size": 31', '"vocab_size": 30'))
    with pytest.raises(DataError, match=r"word_embeddings.weight is \(31, 12\), expected \(30, 12\)"):
        PrevalentModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="does not describe a PrevalentModel"):
        PrevalentModel.from_pretrained(tmp_path)


def test_inputs_that_do_not_fit_are_refused(model: PrevalentModel) -> None:
    ids, mask, views = inputs()
    views = views.float()
    with pytest.raises(ValueError, match=r"vision has shape \(3, 6, 6\); expected \(3, views, 7\)"):
        model(ids, mask, views[..., :6])
    with pytest.raises(ValueError, match="either text_ids or the cache"):
        model(None, None, views)
    with pytest.raises(ValueError, match="either text_ids or the cache"):
        model(ids, mask, views, cache=model.cache_text(ids))
    with pytest.raises(ValueError, match=r"text_ids have shape \(1, 41\); .* at most 40"):
        model.cache_text(torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match=r"text_mask has shape \(3, 8\)"):
        model(ids, mask[:, :8], views)
    with pytest.raises(ValueError, match=r"vision_mask has shape \(3, 5\); expected \(3, 6\)"):
        model(ids, mask, views, torch.ones(3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "hidden_size is 12; expected a multiple of num_heads"),
        ({"cross_layers": 0}, "cross_layers is 0; expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
    ],
)
def test_impossible_sizes_are_refused(config: PrevalentConfig, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **change)
