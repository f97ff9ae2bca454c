"""A dictionary that is told to hold still does, whatever mode its model is put into."""

import copy

import torch
from torch import nn

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commit_updates, commitment_loss
from tests.layers.codebook.writes import batches


def test_a_frozen_dictionary_stays_through_train() -> None:
    for options in ({}, {"update": "manual"}, {"update_every": 2}, {"init": "normal", "revive": 0.5}):
        layer = FeatureQuantizer(4, 16, **options)
        for x in batches(3):
            layer(x)
        layer.freeze_codebook()
        assert layer.codebook_frozen
        assert "frozen" in repr(layer)
        before = copy.deepcopy(layer.state_dict())
        for x in batches(3):
            nn.Sequential(layer).eval().train()
            x.requires_grad_()
            layer(x).sum().backward()
            assert commitment_loss(layer) > 0
        if options.get("update") == "manual":
            commit_updates(layer)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        assert copy.deepcopy(layer).codebook_frozen
        layer.unfreeze_codebook()
        assert "frozen" not in repr(layer)
        for x in batches(2):
            layer(x)
        if options.get("update") == "manual":
            commit_updates(layer)
        assert not torch.equal(layer.codebook, before["codebook"])


def test_requires_grad_of_the_layer_holds_its_dictionary() -> None:
    layer = FeatureQuantizer(4, 16, codebook_dim=2)
    assert layer.requires_grad_(False) is layer
    assert layer.codebook_frozen
    assert not any(p.requires_grad for p in layer.parameters())
    layer.requires_grad_(True)
    assert not layer.codebook_frozen
    assert all(p.requires_grad for p in layer.parameters())


def test_a_stack_freezes_its_levels() -> None:
    stack = ResidualQuantizer(4, 16, num_levels=3)
    stack(batches(1)[0])
    before = copy.deepcopy(stack.state_dict())
    stack.freeze_codebook()
    stack.eval().train()(batches(2)[1])
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
    stack.unfreeze_codebook()
    stack(batches(2)[1])
    assert not torch.equal(stack.levels[0].codebook, before["levels.0.codebook"])
