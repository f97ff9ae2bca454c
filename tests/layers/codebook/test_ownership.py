"""What is written into a dictionary ends in one consistent state, or in an error that names the way in."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commit_updates
from fq_toolkit.layers.codebook import ownership
from fq_toolkit.layers.codebook.consistency import disagreeing
from fq_toolkit.layers.codebook.witness import Witness
from tests.layers.codebook.writes import STARTS, WRITES, batches, codes, same_state


@pytest.mark.parametrize("forwards", [0, 1, 5])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("options", STARTS, ids=str)
def test_every_write_ends_where_set_codebook_does(options: dict, write: str, forwards: int) -> None:
    torch.manual_seed(0)
    told = FeatureQuantizer(4, 16, **options)
    for x in batches(forwards):
        told(x)
    written, w = copy.deepcopy(told), codes()
    told.set_codebook(w)
    with torch.no_grad():
        WRITES[write](written, w)
    for x in batches(4):
        a, b = told.quantize(x), written.quantize(x)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.quantized, b.quantized)
        assert torch.isfinite(written.codebook).all()
        assert written.codebook.abs().max() < 20
        assert same_state(told, written)
    for layer in (told, written):
        layer.eval()
    assert torch.equal(told(x), written(x))


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where comparing bits would wait for the device, other traces must do."""
    monkeypatch.setattr(Witness, "compares", staticmethod(lambda codebook: False))


#: Writes that leave no trace but the bits.
UNTRACED = ("data.copy_", "numpy", "state_dict().data.copy_")


@pytest.mark.parametrize("forwards", [0, 4])
@pytest.mark.parametrize("write", [name for name in WRITES if name not in UNTRACED])
@pytest.mark.parametrize("options", STARTS[::2], ids=str)
@pytest.mark.usefixtures("like_a_gpu")
def test_every_traced_write_is_seen_without_comparing_bits(options: dict, write: str, forwards: int) -> None:
    test_every_write_ends_where_set_codebook_does(options, write, forwards)


@pytest.mark.parametrize("options", STARTS, ids=str)
@pytest.mark.usefixtures("like_a_gpu")
def test_broadcasts_before_every_forward_change_nothing(options: dict) -> None:
    """As DistributedDataParallel sends buffers; the second copy began with another dictionary."""
    torch.manual_seed(0)
    first = FeatureQuantizer(4, 16, **options)
    second, alone = FeatureQuantizer(4, 16, **options), copy.deepcopy(first)
    for step, x in enumerate(batches(12)):
        for layer in (first, second):
            layer.train(step % 4 != 3)
            for own, theirs in zip(layer.buffers(), first.buffers(), strict=True):
                own.copy_(theirs.clone())
        alone.train(step % 4 != 3)
        expected = alone(x)
        assert torch.equal(first(x), expected)
        assert torch.equal(second(x), expected)
        assert same_state(first, alone)
        assert same_state(second, alone)


@pytest.mark.parametrize("write", [name for name in WRITES if name != "state_dict().copy_"])
def test_a_write_is_seen_by_evaluation_too_and_changes_no_statistics(write: str) -> None:
    layer = FeatureQuantizer(4, 16, precision="fast")
    for x in batches(3):
        layer(x)
    layer.eval()
    w = codes() + 1000
    WRITES[write](layer, w)
    x = w + 1e-2 * codes(seed=2)
    expected = torch.cdist(x.double(), w.double()).argmin(dim=1)
    assert torch.equal(layer.quantize(x).indices, expected)
    torch.testing.assert_close(layer.center, w.mean(dim=0), rtol=1e-2, atol=1e-2)


def test_given_codes_are_the_start(tmp_path: Path) -> None:
    w = codes()
    for start in (w, w.numpy(), w.tolist(), w.double(), nn.Parameter(w)):
        layer = FeatureQuantizer(4, 16, init=start)
        assert torch.equal(layer.codebook, w)
        assert torch.equal(layer.ema_sums, w)
        assert torch.equal(layer.ema_counts, torch.ones(16))
        assert layer.initialized
        assert "not started" not in repr(layer)
    x = torch.randn(30, 4)
    nearest = torch.cdist(x.double(), w.double()).argmin(dim=1)
    assert torch.equal(layer.quantize(x).indices, nearest)
    layer.reset_parameters()
    assert torch.equal(layer.codebook, w)
    meta = FeatureQuantizer(4, 16, init=w, device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    assert same_state(meta, layer)
    stack = ResidualQuantizer(4, 16, num_levels=2, init=torch.stack([w, w / 4]))
    assert torch.equal(stack.levels[1].codebook, w / 4)
    with pytest.raises(ValueError, match=r"\(levels, K, C\)"):
        ResidualQuantizer(4, 16, num_levels=2, init=w)
    heads = FeatureQuantizer(8, 16, heads=2, init=w)
    assert torch.equal(heads.codebook, w)


BAD = [
    (torch.zeros(17, 4), ValueError, r"shape \(17, 4\).* 16 codes of dim 4"),
    (torch.zeros(4, 16), ValueError, "transposed"),
    (torch.zeros(16), ValueError, r"shape \(16,\)"),
    (torch.full((16, 4), float("nan")), ValueError, "16 of 16 codes are not finite"),
    (torch.full((16, 4), 1e300, dtype=torch.float64), ValueError, "not finite in float32"),
    (torch.zeros(16, 4, dtype=torch.complex64), TypeError, "real numbers"),
    (torch.zeros(16, 4).to_sparse(), TypeError, "dense"),
    ([["a"] * 4] * 16, TypeError, "must be a"),
    (object(), TypeError, "must be a"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD, ids=lambda v: str(v)[:20])
def test_what_is_no_dictionary_is_refused_and_changes_nothing(bad: Any, error: type, message: str) -> None:
    layer = FeatureQuantizer(4, 16)
    layer(batches(1)[0])
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=message):
        layer.set_codebook(bad)
    with pytest.raises(error, match=message):
        FeatureQuantizer(4, 16, init=bad)
    with pytest.raises((TypeError, ValueError)):
        layer.codebook = bad
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer(batches(1)[0])


@pytest.mark.parametrize("name", ["codebook", "ema_counts", "ema_sums", "num_updates", "initialized"])
def test_assigned_state_of_another_kind_is_refused(name: str) -> None:
    layer = FeatureQuantizer(4, 16)
    layer(batches(1)[0])
    own = getattr(layer, name).clone()
    wrong = [None, 3, torch.zeros(2, 7), torch.zeros(4096, 8)]
    if own.is_floating_point():
        wrong.append(nn.Parameter(own.clone()))
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match="set_codebook"):
            setattr(layer, name, value)
    assert torch.equal(getattr(layer, name), own)
    assert not list(layer.parameters())


@pytest.mark.parametrize("shape", [(4096, 8), (16, 3), (15, 4), (64,), (4, 16), (1, 16, 4)])
@pytest.mark.parametrize("way", ["_buffers", "data", "resize_", "set_"])
@pytest.mark.parametrize("training", [True, False])
def test_a_codebook_of_another_shape_behind_its_back_is_an_error(
    way: str, shape: tuple, training: bool
) -> None:
    layer = FeatureQuantizer(4, 16).train(training)
    if training:
        for x in batches(3):
            layer(x)
    w = torch.randn(shape)
    match way:
        case "_buffers":
            layer._buffers["codebook"] = w
        case "data":
            layer.codebook.data = w
        case "resize_":
            layer.codebook.resize_(shape)
        case "set_":
            layer.codebook.set_(w)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="set_codebook"):
            layer(batches(1)[0])
    layer.register_buffer("codebook", codes())
    layer(batches(1)[0])


@pytest.mark.parametrize("name", ["ema_counts", "ema_sums"])
def test_statistics_of_another_shape_behind_its_back_are_an_error(name: str) -> None:
    layer = FeatureQuantizer(4, 16)
    layer(batches(1)[0])
    layer._buffers[name] = torch.zeros(3)
    layer.codebook.add_(0)
    with pytest.raises(RuntimeError, match=f"{name}.*set_codebook"):
        layer(batches(1)[0])


@settings(max_examples=30, deadline=None)
@given(rows=st.sets(st.integers(0, 15), max_size=16), seed=st.integers(0, 100), cosine=st.booleans())
def test_only_codes_that_were_written_start_again(rows: set[int], seed: int, cosine: bool) -> None:
    """Restarting dead codes by hand must not touch what the others have learned."""
    layer = FeatureQuantizer(4, 16, metric="cosine" if cosine else "euclidean", decay=0.5)
    for x in batches(3):
        layer(x)
    chosen = torch.tensor([k in rows for k in range(16)])
    before = copy.deepcopy(layer)
    w = nn.functional.normalize(codes(seed=seed), dim=1) if cosine else codes(seed=seed)
    layer.codebook[chosen] = w[chosen]
    ownership.notice_writes(layer, True)
    assert torch.equal(layer.ema_counts[chosen], torch.ones(len(rows)))
    torch.testing.assert_close(layer.ema_sums[chosen], w[chosen])
    for name in ("codebook", "ema_counts", "ema_sums"):
        assert torch.equal(getattr(layer, name)[~chosen], getattr(before, name)[~chosen])


def test_small_changes_count() -> None:
    layer = FeatureQuantizer(4, 16, decay=0.999)
    for x in batches(5):
        layer(x)
    wanted = layer.codebook + 0.01
    layer.codebook.add_(0.01)
    layer(torch.full((1, 4), float("nan")))
    layer(wanted[:1])
    torch.testing.assert_close(layer.codebook, wanted, rtol=1e-3, atol=1e-4)


def test_staged_statistics_of_replaced_codes_are_forgotten() -> None:
    for write in WRITES.values():
        layer = FeatureQuantizer(4, 16, update="manual")
        for x in batches(3):
            layer(x)
        write(layer, codes())
        layer(torch.full((1, 4), float("nan")))
        commit_updates(layer)
        assert torch.equal(layer.codebook, codes())


def test_writing_the_same_changes_nothing() -> None:
    for write in WRITES.values():
        a, b = FeatureQuantizer(4, 16), FeatureQuantizer(4, 16)
        for x in batches(6):
            assert torch.equal(a(x), b(x))
            write(b, b.codebook.clone())
        assert same_state(a, b)


@pytest.mark.parametrize("size", [3, 50])
@pytest.mark.parametrize("forwards", [0, 1, 4, 60])
@pytest.mark.parametrize("options", STARTS, ids=str)
def test_what_the_layer_has_written_itself_is_never_doubted(options: dict, forwards: int, size: int) -> None:
    """Few rows for many codes, and codes that died long ago: loading changes no bit of what follows."""
    torch.manual_seed(0)
    layer, loaded = FeatureQuantizer(4, 16, **options), FeatureQuantizer(4, 16, **options)
    draw = torch.Generator().manual_seed(3)
    for step in range(forwards + 3):
        if step == forwards:
            assert torch.equal(layer.codebook, layer.state_dict()["codebook"])
            loaded.load_state_dict(copy.deepcopy(layer.state_dict()))
            loaded.staged.forwards = layer.staged.forwards = 0
            layer.staged.clear()
        x = torch.randn(size, 4, generator=draw)
        if step >= forwards:
            assert torch.equal(layer(x), loaded(x))
            assert same_state(layer, loaded)
        else:
            layer(x)


class Traffic:
    """One layer, whatever happens to it, and the codes that it must hold."""

    def __init__(self, options: dict) -> None:
        self.layer = FeatureQuantizer(4, 8, **options)
        self.draw = torch.Generator().manual_seed(0)

    def codes(self) -> torch.Tensor:
        codes = torch.randn(8, 4, generator=self.draw) + 2
        return nn.functional.normalize(codes, dim=1) if self.layer.metric == "cosine" else codes

    def do(self, action: str) -> None:
        layer, x = self.layer, torch.randn(20, 4, generator=self.draw)
        if action == "train":
            layer.train()(x)
        elif action == "evaluate":
            layer.eval()(x)
        elif action == "copy":
            self.layer = copy.deepcopy(layer)
        elif action == "pickle":
            self.layer = pickle.loads(pickle.dumps(layer))
        elif action == "load":
            layer.load_state_dict(copy.deepcopy(layer.state_dict()))
        elif action == "call with others":
            torch.func.functional_call(layer.eval(), {"codebook": self.codes()}, (x,))
        elif action == "half":
            layer.half().float()
        else:
            WRITES[action](layer, self.codes())


ACTIONS = [
    *WRITES,
    "train",
    "train",
    "train",
    "evaluate",
    "copy",
    "pickle",
    "load",
    "call with others",
    "half",
]


@settings(max_examples=60, deadline=None)
@given(
    options=st.sampled_from(STARTS),
    actions=st.lists(st.sampled_from(ACTIONS), max_size=12),
)
def test_whatever_happens_what_is_looked_up_stays_until_the_data_moves_it(
    options: dict, actions: list[str]
) -> None:
    traffic = Traffic(options)
    for action in [*actions, "train"]:
        traffic.do(action)
        layer = traffic.layer
        if not layer.has_started():
            continue
        held, x = layer.codebook.clone(), torch.randn(30, 4, generator=traffic.draw)
        found = layer.eval().quantize(x)
        scaled = nn.functional.normalize(x, dim=1) if layer.metric == "cosine" else x
        nearest = torch.cdist(scaled.double(), held.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert torch.equal(found.indices, nearest.argmin(dim=1))
        layer.staged.clear()
        layer.train()(torch.full((3, 4), float("nan")))  # a step without data
        assert torch.equal(layer.codebook, held)
        # ... and the next step with data starts from these codes, not from what stale sums remember.
        account = disagreeing(
            layer.codebook,
            layer.ema_counts,
            layer.ema_sums,
            layer.eps,
            ownership.debiasing_scale(layer),
            unit=layer.metric == "cosine",
            may_be_blank=True,
        )
        assert not account.any()
