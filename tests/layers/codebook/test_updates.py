"""When and how the dictionary moves: starts, policies, accumulation, revival, warm-up."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.layers import (
    FeatureQuantizer,
    coalesce_updates,
    codebook_report,
    commit_updates,
    commitment_loss,
    frozen,
)
from fq_toolkit.layers.codebook.initialization import spread_order


def rows_in(codes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (codes[:, None] == rows[None]).all(dim=2).any(dim=1)


# --- starts -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 300), codes=st.integers(1, 40))
def test_data_start_takes_distinct_rows(seed: int, n: int, codes: int) -> None:
    torch.manual_seed(seed)
    x = torch.randint(0, 3, (n, 3)).float() if seed % 2 else torch.randn(n, 3)
    layer = FeatureQuantizer(3, codes, decay=0.0, update="manual")
    layer(x)
    assert rows_in(layer.codebook, x).all()
    assert len(layer.codebook.unique(dim=0)) == min(codes, len(x.unique(dim=0)))
    assert torch.equal(layer.ema_counts, torch.ones(codes))
    assert torch.equal(layer.ema_sums, layer.codebook)
    torch.testing.assert_close(layer.center, x.mean(dim=0), rtol=1e-5, atol=1e-6)


def test_data_start_skips_masked_and_bad_rows() -> None:
    x = torch.randn(40, 3)
    x[::4] = float("nan")
    mask = torch.ones(40, dtype=torch.bool)
    mask[1::4] = False
    layer = FeatureQuantizer(3, 20, update="manual")
    layer(x, mask=mask)
    assert rows_in(layer.codebook, torch.cat([x[2::4], x[3::4]])).all()


def test_data_start_repeats() -> None:
    layers = [FeatureQuantizer(3, 8) for _ in range(2)]
    x = torch.randn(50, 3)
    for layer in layers:
        layer(x)
    assert torch.equal(layers[0].codebook, layers[1].codebook)


@given(st.integers(1, 100_000))
def test_spread_order_visits_every_row(length: int) -> None:
    import math

    assert math.gcd(spread_order(length), length) == 1


def test_kmeans_start_is_better_than_its_rows() -> None:
    torch.manual_seed(3)
    centers = 10 * torch.randn(8, 4)
    x = centers[torch.randint(8, (400,))] + torch.randn(400, 4)
    losses = {}
    for init in ("data", "kmeans"):
        layer = FeatureQuantizer(4, 16, init=init, update="manual")
        losses[init] = layer.quantize(x).loss.mean().item()
        assert torch.isfinite(layer.codebook).all()
        assert bool((layer.ema_counts >= 1).all())
    assert losses["kmeans"] < 0.8 * losses["data"]


def test_before_any_training_batch_it_warns_once_and_looks_up_at_random() -> None:
    layer = FeatureQuantizer(4, 8).eval()
    with pytest.warns(UserWarning, match="has seen no training batch yet"):
        layer(torch.randn(3, 4))
    assert not bool(layer.initialized)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(3, 4))
        layer.train()(torch.randn(3, 4))
    assert bool(layer.initialized)


# --- policies -----------------------------------------------------------------------------------------------


def test_every_training_forward_updates_with_or_without_grad_and_no_other() -> None:
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(9, 4))
    with torch.no_grad():
        layer(torch.randn(9, 4))
    assert int(layer.num_updates) == 2
    before = layer.codebook.clone()
    with frozen(layer):
        layer(torch.randn(9, 4))
    layer.eval()
    layer(torch.randn(9, 4))
    assert torch.equal(layer.codebook, before)
    assert int(layer.num_updates) == 2


@pytest.mark.parametrize("policy", ["update_every", "manual"])
def test_four_times_eight_equals_once_thirty_two(backend: str, policy: str) -> None:
    whole = FeatureQuantizer(4, 6, init="normal")
    options = {"update_every": 4} if policy == "update_every" else {"update": "manual"}
    parts = FeatureQuantizer(4, 6, init="normal", **options)
    parts.load_state_dict(whole.state_dict())
    for _ in range(3):
        x = torch.randn(32, 4, 5)
        expected = whole.quantize(x.transpose(1, 2))
        got = [parts.quantize(part.transpose(1, 2)) for part in x.split(8)]
        if policy == "manual":
            commit_updates(parts)
        assert torch.equal(torch.cat([out.quantized for out in got]), expected.quantized)
        assert torch.equal(torch.cat([out.loss for out in got]), expected.loss)
        assert torch.equal(parts.ema_counts, whole.ema_counts)
        torch.testing.assert_close(parts.codebook, whole.codebook, rtol=1e-5, atol=1e-6)
        parts.load_state_dict(whole.state_dict())  # one rounding must not grow through the argmin
    assert int(parts.num_updates) == 3


def test_manual_commit_without_forwards_changes_nothing() -> None:
    layer = FeatureQuantizer(4, 8, init="normal", update="manual", revive=1.0)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    commit_updates(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_coalescing_alone_changes_nothing_and_can_be_removed() -> None:
    nets = [torch.nn.Sequential(FeatureQuantizer(4, 8), FeatureQuantizer(4, 8)) for _ in range(2)]
    handle = coalesce_updates(nets[1])
    x = torch.randn(20, 4)
    for net in nets:
        net(x)
    handle.remove()
    nets[1](x)
    nets[0](x)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not nets[1]._forward_hooks


# --- revival ------------------------------------------------------------------------------------------------


def test_dead_codes_restart_from_rows_of_the_batch_with_fresh_statistics(backend: str) -> None:
    layer = FeatureQuantizer(3, 8, decay=0.5, revive=0.1)
    layer(torch.randn(50, 3))
    x = 100 + torch.randn(200, 3)
    for _ in range(6):
        layer(x)
    assert layer.dead_codes() == 0
    assert bool((layer.codebook > 90).all())
    assert len(layer.codebook.unique(dim=0)) > 4


def test_without_revival_a_dead_code_stays_dead(backend: str) -> None:
    layer = FeatureQuantizer(3, 8, decay=0.5)
    layer(torch.randn(50, 3))
    for _ in range(20):
        layer(100 + torch.randn(200, 3))
    assert layer.dead_codes() == 7


def test_a_code_never_restarts_from_a_masked_or_bad_row(backend: str) -> None:
    layer = FeatureQuantizer(3, 16, init="uniform", revive=10.0, revive_by="count")
    x = torch.randn(40, 3)
    x[::2] = float("nan")
    mask = torch.ones(40, dtype=torch.bool)
    mask[1::4] = False
    x[1::4] = 777.0
    for _ in range(5):
        layer(x, mask=mask)
    assert torch.isfinite(layer.codebook).all()
    assert (layer.codebook.abs() < 100).all()


def updated_by_hand(layer: FeatureQuantizer, counts: torch.Tensor) -> torch.Tensor:
    """Moving counts after the update, before anything restarts, debiased if the layer's are."""
    seen = layer.decay * layer.ema_counts + (1 - layer.decay) * counts
    return seen / (1 - layer.decay ** (int(layer.num_updates) + 1)) if layer.ema == "debiased" else seen


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    codes=st.integers(1, 40),
    rows=st.integers(1, 200),
    revive=st.sampled_from([0.05, 0.1, 0.5, 1.0]),
    by=st.sampled_from(["share", "count"]),
    ema=st.sampled_from(["smoothed", "debiased"]),
    update_every=st.sampled_from([1, 2]),
)
def test_exactly_the_codes_below_the_threshold_restart(
    seed: int, codes: int, rows: int, revive: float, by: str, ema: str, update_every: int
) -> None:
    torch.manual_seed(seed)
    layer = FeatureQuantizer(
        2, codes, decay=0.8, revive=revive, revive_by=by, ema=ema, init="uniform", update_every=update_every
    )
    for _ in range(4):
        x = [torch.randn(rows, 2) * torch.rand(()) for _ in range(update_every)]
        outs = [layer.quantize(part).indices for part in x[:-1]]
        before = layer.chosen_counts.clone()
        counts = torch.zeros(codes)
        expected_seen = layer.ema_counts.clone()
        probe = FeatureQuantizer(2, codes, ema=ema).eval()
        probe.adopt(layer.codebook, layer.ema_counts, layer.ema_sums)
        outs.append(probe.quantize(x[-1]).indices)
        counts = torch.cat(outs).bincount(minlength=codes).float()
        expected_seen = updated_by_hand(layer, counts)
        layer(x[-1])
        weight = min(float(expected_seen.sum()), float(counts.sum())) / codes if by == "share" else 1.0
        close = (expected_seen - revive * weight).abs() < 1e-5 * max(weight, 1)
        restart = expected_seen < revive * weight
        restarted = (layer.chosen_counts == 0) & ((0.8 * before + 0.2 * counts > 0) | (expected_seen < 1e-3))
        assert bool((rows_in(layer.codebook, torch.cat(x)) | ~restart | close).all())
        kept = ~restart & ~close
        torch.testing.assert_close(layer.chosen_counts[kept], (0.8 * before + 0.2 * counts)[kept])
        assert bool((~restarted | restart | close | (before + counts == 0)).all())
        assert abs(layer.restarts() - int(restart.sum())) <= int(close.sum())
        again = updated_by_hand(layer, torch.zeros(codes)) if ema == "smoothed" else None
        if again is not None and by == "share" and revive <= 0.5 and restart.any():
            # A restarted code outlives the next update even when no row chooses it.
            assert bool((again[restart & ~close] >= revive * weight * (1 - 1e-5)).all())


@pytest.mark.parametrize("rows", [32, 4096])
def test_restarts_settle_whatever_the_batch(rows: int) -> None:
    """The threshold follows the batch: neither small nor large ones keep a share of the codes restarting."""
    torch.manual_seed(0)
    layer = FeatureQuantizer(4, 256, revive=0.1)
    restarts = []
    for _ in range(120):
        layer(torch.randn(rows, 4))
        restarts.append(layer.restarts())
    assert sum(restarts[-40:]) / 40 < 0.05 * 256
    # Restarts put weight on their codes: bounded, or the threshold would run away.
    assert float(layer.ema_counts.sum()) < 3 * rows + 2


def test_only_what_the_data_chose_is_called_used() -> None:
    """A code that was just put somewhere is not in use until a row takes it."""
    torch.manual_seed(0)
    layer = FeatureQuantizer(3, 256, revive=0.1)
    hit_since = torch.zeros(256, dtype=torch.bool)
    restarted = 0
    for _ in range(80):
        before = layer.ema_counts.clone()
        indices = layer.quantize(torch.randn(20, 3)).indices
        counts = indices.bincount(minlength=256)
        if layer.num_updates == 1:
            before.fill_(1)  # the start from data
        hit_since |= counts > 0
        jumped = layer.ema_counts > 0.9 * before + 0.1 * counts + 1e-6  # more than its rows can explain
        hit_since &= ~jumped
        restarted += int(jumped.sum())
        assert layer.usage() * 256 <= int(hit_since.sum())
        assert int(jumped.sum()) == layer.restarts()
    assert restarted > 0
    row = codebook_report(layer).rows[0]
    assert (row.restarted, row.used, row.dead) == (layer.restarts(), layer.usage(), layer.dead_codes())


def test_a_state_saved_without_revival_loads_with_it_and_back() -> None:
    plain, reviving = FeatureQuantizer(3, 8), torch.nn.Sequential(FeatureQuantizer(3, 8, revive=0.1))
    plain(torch.randn(50, 3))
    reviving.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
    assert torch.equal(reviving[0].chosen_counts, plain.ema_counts)
    other = FeatureQuantizer(3, 8)
    other.load_state_dict(reviving[0].state_dict())
    assert torch.equal(other.codebook, plain.codebook)


def test_a_share_above_one_names_the_other_measure() -> None:
    with pytest.raises(ValueError, match=r"revive=2.0 is a share .* in \[0, 1\].* revive_by=\"count\""):
        FeatureQuantizer(3, 8, revive=2.0)
    assert FeatureQuantizer(3, 8, preset="lucidrains", revive=2.0).revive_by == "count"


# --- warm-up ------------------------------------------------------------------------------------------------


def test_strength_blends_and_a_schedule_sees_the_number_of_updates(backend: str) -> None:
    x = torch.randn(10, 4)
    layer = FeatureQuantizer(4, 8, init="normal", strength=0.25).eval()
    q = layer.codebook[layer.quantize(x).indices]
    torch.testing.assert_close(layer(x), x + 0.25 * (q - x))
    seen: list[int] = []

    def schedule(step: int) -> float:
        seen.append(step)
        return min(1.0, step / 2)

    warm = FeatureQuantizer(4, 8, init="normal", strength=schedule)
    assert torch.equal(warm(x), x)
    warm(x)
    before = warm.codebook.clone()
    out = warm.quantize(x)
    assert torch.equal(out.quantized, before[out.indices])
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match=r"strength\(step\) must be in \[0, 1\], got 3"):
        FeatureQuantizer(4, 8, init="normal", strength=lambda step: 3.0)(x)
    resumed = FeatureQuantizer(4, 8, strength=schedule)
    resumed.load_state_dict(warm.state_dict())
    resumed.eval()(x)
    assert seen[-1] == 3


def test_regularize_lets_the_host_overwrite_what_it_returns() -> None:
    """`nn.ReLU(inplace=True)` right behind the layer changes neither the loss nor any gradient."""
    conv = torch.nn.Conv2d(3, 4, 3)
    images = torch.randn(2, 3, 9, 9)
    gradients = []
    for inplace in (False, True):
        layer = FeatureQuantizer(4, 8, mode="regularize")
        model = torch.nn.Sequential(conv, layer, torch.nn.ReLU(inplace=inplace))
        loss = model(images).square().mean() + commitment_loss(model)
        gradients.append(torch.autograd.grad(loss, conv.weight)[0])
    assert torch.equal(*gradients)


def test_regularize_returns_the_very_features() -> None:
    layer = FeatureQuantizer(4, 8, mode="regularize")
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        assert layer(x) is x
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 3))
    quantized = torch.nn.Sequential(net[0], FeatureQuantizer(4, 8, mode="regularize"), net[1])
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(net(images), quantized(images))
    commitment_loss(quantized).backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert net[1].weight.grad is None


def test_strength_can_be_set_between_steps() -> None:
    layer, x = FeatureQuantizer(4, 8, init="normal").eval(), torch.randn(5, 4)
    quantized = layer(x)
    for strength, expected in ((0, x), (1, quantized), (0.0, x), (lambda step: 1, quantized)):
        layer.strength = strength
        assert torch.equal(layer(x), expected)


def test_an_averaged_copy_follows_the_schedule_of_its_original() -> None:
    """Averages of models copy buffer by buffer; the copy must then compute what the original computes."""
    model = FeatureQuantizer(4, 8, strength=lambda step: min(1.0, step / 4))
    average = copy.deepcopy(model).eval()
    for _ in range(6):
        model(torch.randn(20, 4))
        for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        x = torch.randn(5, 4)
        assert torch.equal(average(x), model.eval()(x))
        model.train()
