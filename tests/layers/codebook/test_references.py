"""The states of other implementations, read and written."""

import pytest
import torch
from torch import nn

from fq_toolkit.layers import FeatureQuantizer
from tests.layers.oracles import ReleasedOracle


def released_state(dim: int, codes: int) -> dict[str, torch.Tensor]:
    embed = torch.randn(dim, codes)
    return {"embed": embed, "cluster_size": torch.rand(codes) + 0.5, "embed_avg": embed * 2}


def test_released_state_loads_and_saves() -> None:
    state = released_state(4, 8)
    whole = {
        "linear.weight": torch.zeros(1),
        **{f"blocks.0.1.{name}": value for name, value in state.items()},
    }
    layer = FeatureQuantizer.from_reference(whole, prefix="blocks.0.1.", commitment=0.5)
    assert (layer.mode, layer.decay, layer.commitment) == ("regularize", 0.8, 0.5)
    assert torch.equal(layer.codebook, state["embed"].t())
    back = layer.to_reference("blocks.0.1.")
    assert all(torch.equal(back[f"blocks.0.1.{name}"], value) for name, value in state.items())
    oracle = ReleasedOracle(state["embed"].t(), 0.8, 0.5)
    oracle.counts, oracle.sums = state["cluster_size"].double(), state["embed_avg"].t().double()
    x = torch.randn(3, 4, 5, 5)
    out = layer.quantize(x)
    indices, loss, _ = oracle.step(x)
    assert torch.equal(out.indices.flatten(), indices)
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.codebook.double(), oracle.codebook, rtol=1e-4, atol=1e-5)


def test_wrong_prefix_lists_the_right_ones() -> None:
    state = {f"blocks.{i}.1.{name}": value for i in (0, 2) for name, value in released_state(4, 8).items()}
    with pytest.raises(
        ValueError, match=r"prefix='blocks\.1\.'; it has one under prefix='blocks\.0\.1\.', 'blocks\.2"
    ):
        FeatureQuantizer.from_reference(state, prefix="blocks.1.")
    with pytest.raises(ValueError, match="it has none anywhere"):
        FeatureQuantizer.from_reference({"weight": torch.zeros(1)})
    bad = released_state(4, 8) | {"cluster_size": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"cluster_size \(K,\)"):
        FeatureQuantizer.from_reference(bad)


def trained_state(layout: str, codes: int, dim: int, *, even: bool = False) -> dict[str, torch.Tensor]:
    """What a quantizer after FQ-GAN or Encodec saves; with ``even`` counts its layout is not told."""
    counts = torch.full((codes,), 2.0) if even else torch.rand(codes) * 9 + 0.5
    smoothed = (counts + 1e-5) / (counts.sum() + codes * 1e-5) * counts.sum()
    embed = torch.randn(codes, dim)
    values = {"embed": embed, "embed_avg": embed * smoothed[:, None]}
    values = {name: v.t().contiguous() if layout == "released" else v for name, v in values.items()}
    return {**values, "cluster_size": counts}


@pytest.mark.parametrize("codes", [8, 4, 3])
@pytest.mark.parametrize("layout", ["released", "encodec"])
@pytest.mark.parametrize("told", [True, False])
def test_the_layout_of_a_reference_is_found(layout: str, codes: int, told: bool) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        state = {f"q.{name}": value for name, value in trained_state(layout, codes, 4).items()}
        layer = FeatureQuantizer.from_reference(state, "q.", layout=layout if told else None)
        embed = state["q.embed"].t() if layout == "released" else state["q.embed"]
        assert torch.equal(layer.codebook, embed)
        assert torch.equal(layer.ema_counts, state["q.cluster_size"])
        x = torch.randn(9, 4)
        nearest = torch.cdist(x.double(), embed.double()).argmin(dim=1)
        assert torch.equal(layer.eval().quantize(x).indices, nearest)
        assert layer.decay == (0.8 if layout == "released" else 0.99)


@pytest.mark.parametrize("even", [True, False])
def test_a_square_reference_that_may_be_either_is_refused(even: bool) -> None:
    for layout in ("released", "encodec"):
        state = trained_state(layout, 4, 4, even=even)
        if not even:
            state["embed_avg"] = torch.randn(4, 4)
        with pytest.raises(ValueError, match=r'layout="released" for \(C, K\) or layout="encodec"'):
            FeatureQuantizer.from_reference(state)
        right = FeatureQuantizer.from_reference(state, layout=layout)
        assert torch.equal(right.codebook, state["embed"].t() if layout == "released" else state["embed"])
    started = FeatureQuantizer.from_reference({**state, "inited": torch.ones(1)})
    assert torch.equal(started.codebook, state["embed"])
    with pytest.raises(ValueError, match="has not started"):
        FeatureQuantizer.from_encodec({**state, "inited": torch.zeros(1)})
    fresh = {name: value * 0 if name == "cluster_size" else value for name, value in state.items()}
    with pytest.raises(ValueError, match="layout="):
        FeatureQuantizer.from_reference(fresh)


def test_a_wrong_layout_is_refused() -> None:
    for layout, other in (("released", "encodec"), ("encodec", "released")):
        with pytest.raises(ValueError, match=r"expected embed \(.*got embed"):
            FeatureQuantizer.from_reference(trained_state(layout, 8, 4), layout=other)
    with pytest.raises(ValueError, match="layout must be one of"):
        FeatureQuantizer.from_reference(trained_state("encodec", 8, 4), layout="(K, C)")


def test_encodec_of_transformers_loads() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(codebook_size=16, codebook_dim=16, hidden_size=16)
    from transformers.models.encodec.modeling_encodec import EncodecEuclideanCodebook

    theirs = EncodecEuclideanCodebook(config)
    theirs.embed.copy_(torch.randn(16, 16))
    theirs.embed_avg.copy_(theirs.embed)
    theirs.cluster_size.fill_(1)
    state = {f"quantizer.layers.0.codebook.{name}": v for name, v in theirs.state_dict().items()}
    x = torch.randn(2, 7, 16)
    for load in (FeatureQuantizer.from_encodec, FeatureQuantizer.from_reference):
        layer = load(state, "quantizer.layers.0.codebook.").eval()
        assert torch.equal(layer.quantize(x).indices, theirs.encode(x))


def test_embeddings_load() -> None:
    embedding = nn.Embedding(8, 4)
    state = {"decoder.weight": torch.zeros(1), "quantize.embedding.weight": embedding.weight.detach()}
    x = torch.randn(9, 4)
    nearest = torch.cdist(x.double(), embedding.weight.double()).argmin(dim=1)
    for source, prefix in ((embedding, ""), (embedding.weight, ""), (state, "quantize.")):
        layer = FeatureQuantizer.from_embedding(source, prefix, decay=0.5)
        assert torch.equal(layer.codebook, embedding.weight)
        assert layer.decay == 0.5
        assert torch.equal(layer.quantize(x).indices, nearest)
        assert not torch.equal(layer.codebook, embedding.weight)
        layer.reset_parameters()
        assert torch.equal(layer.codebook, embedding.weight)
    cosine = FeatureQuantizer.from_embedding(state, "quantize.", metric="cosine", heads=2)
    assert torch.equal(cosine.codebook, nn.functional.normalize(embedding.weight.detach(), dim=1))
    assert cosine.dim == 8
    with pytest.raises(ValueError, match=r"it has one under prefix='quantize\.'"):
        FeatureQuantizer.from_embedding(state)
    with pytest.raises(TypeError, match="got Linear"):
        FeatureQuantizer.from_embedding(nn.Linear(4, 8))
    with pytest.raises(ValueError, match="shape"):
        FeatureQuantizer.from_embedding(torch.zeros(4))


LUCIDRAINS = [
    dict(dim=8, codebook_size=16),
    dict(dim=8, codebook_size=16, codebook_dim=3),
    dict(dim=8, codebook_size=16, heads=2, codebook_dim=4),
    dict(dim=8, codebook_size=16, heads=2, codebook_dim=3),
    dict(dim=8, codebook_size=16, use_cosine_sim=True),
]


@pytest.mark.parametrize("settings", LUCIDRAINS, ids=str)
@pytest.mark.parametrize("trick", ["rotation", "straight_through"])
def test_lucidrains_layer_loads_and_trains_alike(settings: dict, trick: str) -> None:
    peer = pytest.importorskip("vector_quantize_pytorch", reason="compares with vector-quantize-pytorch")
    vq = peer.VectorQuantize(**settings, rotation_trick=trick == "rotation")
    cosine = settings.get("use_cosine_sim", False)
    layer = FeatureQuantizer.from_lucidrains(
        {f"vq.{name}": value for name, value in vq.state_dict().items()},
        prefix="vq.",
        heads=settings.get("heads", 1),
        mode=trick,
        metric="cosine" if cosine else "euclidean",
    )
    for step in range(5):
        x = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(step))
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = layer.quantize(mine)
        quantized, indices, loss = vq(theirs)
        assert torch.equal(out.indices, indices)
        torch.testing.assert_close(out.quantized, quantized, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.codebook, vq.codebook, rtol=1e-4, atol=1e-5)
        weight = torch.randn(2, 20, 8)
        total, expected = (out.quantized * weight).sum(), (quantized * weight).sum()
        if "codebook_dim" not in settings and not cosine:  # there, its loss compares other vectors
            torch.testing.assert_close(out.loss.mean(), loss)
            total, expected = total + out.loss.mean(), expected + loss
        total.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    for name, value in layer.to_lucidrains("vq.").items():
        torch.testing.assert_close(value, vq.state_dict()[name.removeprefix("vq.")], rtol=1e-4, atol=1e-5)


def test_lucidrains_layers_that_do_more_are_refused() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch", reason="compares with vector-quantize-pytorch")
    several = peer.VectorQuantize(
        dim=8, codebook_size=4, heads=2, codebook_dim=4, separate_codebook_per_head=True
    )
    with pytest.raises(ValueError, match="only one codebook"):
        FeatureQuantizer.from_lucidrains(several.state_dict())
    waiting = peer.VectorQuantize(dim=8, codebook_size=4, kmeans_init=True)
    with pytest.raises(ValueError, match="has not started"):
        FeatureQuantizer.from_lucidrains(waiting.state_dict())
    affine = peer.VectorQuantize(dim=8, codebook_size=4, affine_param=True)
    with pytest.raises(ValueError, match="affine"):
        FeatureQuantizer.from_lucidrains(affine.state_dict())


def test_presets_can_be_overridden_and_are_what_they_say() -> None:
    layer = FeatureQuantizer(4, 8, preset="lucidrains", decay=0.5, commitment=0.0)
    assert (layer.mode, layer.decay, layer.commitment) == ("rotation", 0.5, 0.0)
    assert torch.equal(layer.ema_counts, torch.ones(8))
    assert torch.equal(layer.ema_sums, layer.codebook)
    released = FeatureQuantizer(4, 8, preset="fqgan")
    assert torch.equal(released.ema_counts, torch.zeros(8))
    assert torch.equal(released.ema_sums, released.codebook)
    assert torch.equal(FeatureQuantizer(4, 8, preset="fqgan-tf").ema_sums, torch.zeros(8, 4))
