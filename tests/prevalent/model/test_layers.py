"""Computing only what is read: the same states and gradients as computing everything."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fq_toolkit.prevalent import PrevalentConfig, PrevalentModel
from fq_toolkit.prevalent.model.layers import Packing

CONFIG = PrevalentConfig(
    vocab_size=30, hidden_size=12, num_heads=3, text_layers=2, cross_layers=3, intermediate_size=48,
    vision_size=7, max_positions=40, dropout=0.0, attention_dropout=0.0, init_std=0.3,
)  # fmt: skip
LENGTH = 7

masks = st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=4)


def build(**change: int) -> PrevalentModel:
    """Return a model in float64, whose every bias and norm acts."""
    torch.manual_seed(5)
    model = PrevalentModel(dataclasses.replace(CONFIG, **change)).double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def results(model: PrevalentModel, read: Tensor, *inputs: Tensor | None, **options: object) -> list[Tensor]:
    """Return the states that are read, and all gradients of a function of them."""
    model.zero_grad()
    language, pooled = model(*inputs, **options)
    language = torch.where(read[..., None], language, 0)
    factors = torch.linspace(-1, 2, language.numel(), dtype=torch.float64).view_as(language)
    ((language * factors).sin().sum() + pooled.square().sum()).backward()
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in model.parameters()]
    return [language.detach(), pooled.detach(), *gradients]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        # Relative too: a text without a token has gradients in the thousands.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(masks, st.data())
def test_states_and_gradients_are_those_of_computing_everything(
    rows: list[list[bool]], data: st.DataObject
) -> None:
    """Any mask: holes, padding first, texts without a token; any states: also those of padding."""
    mask = torch.tensor(rows)
    needed = torch.tensor(
        data.draw(st.lists(masks.map(lambda m: m[0]), min_size=len(rows), max_size=len(rows)))
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    ids = torch.randint(1, 30, mask.shape, generator=generator)
    views = torch.randn(len(mask), 5, 7, generator=generator, dtype=torch.float64)
    model = build(cross_layers=data.draw(st.integers(1, 3)))
    read = needed.clone()
    read[:, 0] = True
    plain = results(model, read, ids, mask, views)
    assert_same(results(model, read, ids, mask, views, needed=needed), plain)
    language = model(ids, mask, views, needed=needed.long()).language
    assert not language[~read].any()


def test_masks_of_views_and_texts_without_padding() -> None:
    model = build()
    ids, views = torch.randint(1, 30, (3, LENGTH)), torch.randn(3, 5, 7, dtype=torch.float64)
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    needed = torch.zeros(3, LENGTH, dtype=torch.bool)
    needed[:, 0] = needed[1, 4] = needed[2, 6] = True
    for inputs in ((ids, None, views, seen), (ids, None, views), (ids, torch.ones(3, LENGTH), views, seen)):
        assert_same(results(model, needed, *inputs, needed=needed), results(model, needed, *inputs))


def test_a_cache_of_the_text_serves_too() -> None:
    model = build()
    ids, views = torch.randint(1, 30, (2, LENGTH)), torch.randn(2, 5, 7, dtype=torch.float64)
    mask = torch.arange(LENGTH) < torch.tensor([[4], [LENGTH]])
    needed = torch.zeros(2, LENGTH, dtype=torch.bool)
    needed[:, 0] = needed[0, 2] = True
    plain = results(model, needed, ids, mask, views)
    cached = results(model, needed, None, None, views, cache=model.cache_text(ids, mask), needed=needed)
    assert_same(cached, plain)


def test_padding_and_what_nobody_reads_are_not_computed() -> None:
    model = build()
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: rows.update({name: inputs[0].shape[:-1].numel()})
            )
    mask = torch.arange(LENGTH) < torch.tensor([[3], [5]])
    needed = torch.zeros(2, LENGTH, dtype=torch.bool)
    needed[1, 2] = True
    ids, views = torch.randint(1, 30, (2, LENGTH)), torch.randn(2, 5, 7, dtype=torch.float64)
    model(ids, mask, views, needed=needed)
    assert rows["text_layers.0.feed_forward.expand"] == rows["text_layers.1.attention.qkv"] == 3 + 5
    assert rows["cross_layers.0.text_feed_forward.expand"] == 3 + 5
    assert rows["cross_layers.2.text_feed_forward.expand"] == 2 + 1  # both first positions, one other
    assert "cross_layers.2.vision_feed_forward.expand" not in rows


def test_dropout_acts_on_packed_rows() -> None:
    model = build(dropout=0.5, attention_dropout=0.5)
    ids, views = torch.randint(1, 30, (2, LENGTH)), torch.randn(2, 5, 7, dtype=torch.float64)
    needed = torch.ones(2, LENGTH, dtype=torch.bool)
    assert not torch.equal(*(model(ids, None, views, needed=needed).language for _ in range(2)))
    assert torch.equal(*(model.eval()(ids, None, views, needed=needed).language for _ in range(2)))


def test_needed_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needed has shape \(2, 3\).*\(2, 7\)"):
        build()(
            torch.ones(2, LENGTH, dtype=torch.long),
            None,
            torch.zeros(2, 5, 7, dtype=torch.float64),
            needed=torch.ones(2, 3),
        )


@given(masks)
def test_picking_and_spreading_are_undone(rows: list[list[bool]]) -> None:
    chosen = torch.tensor(rows)
    chosen[0, 0] = True
    packing = Packing(chosen)
    texts = torch.arange(1.0, 1 + chosen.numel() * 2).view(*chosen.shape, 2)
    picked = packing.pick(texts)
    assert torch.equal(picked, texts[chosen])
    assert torch.equal(packing.restore(picked), torch.where(chosen[..., None], texts, 0))
    assert packing.spread(picked).shape[:2] == (len(chosen), int(chosen.sum(dim=1).max()))
    assert torch.equal(packing.collect(packing.spread(picked)), picked)
