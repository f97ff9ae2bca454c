"""What is written into a dictionary ends in one consistent state, or in an error that names the way in."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commit_updates, commitment_loss
from fq_toolkit.layers.codebook import ownership
from fq_toolkit.layers.codebook.consistency import disagreeing
from fq_toolkit.layers.codebook.witness import Witness

STARTS = [
    {"init": "data"},
    {"init": "kmeans"},
    {"init": "normal"},
    {"init": "uniform"},
    {"preset": "fqgan"},
    {"preset": "fqgan-tf"},
    {"metric": "cosine"},
    {"init": "normal", "metric": "cosine", "revive": 0.1},
    {"revive": 0.2},
    {"update_every": 2},
]


def by_numpy(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.codebook.numpy()[:] = w.numpy()


def by_data(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.codebook.data = w.clone()


def by_buffers(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer._buffers["codebook"] = w.clone()


def by_state_dict(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "codebook": w})


def by_rows(layer: FeatureQuantizer, w: torch.Tensor) -> None:
    for k, row in enumerate(w):
        layer.codebook[k] = row


WRITES: dict[str, Callable[[FeatureQuantizer, torch.Tensor], Any]] = {
    "assignment": lambda layer, w: setattr(layer, "codebook", w),
    "assignment of float64": lambda layer, w: setattr(layer, "codebook", w.double()),
    "copy_": lambda layer, w: layer.codebook.copy_(w),
    "slice": lambda layer, w: layer.codebook.__setitem__(slice(None), w),
    "rows": by_rows,
    "data.copy_": lambda layer, w: layer.codebook.data.copy_(w),
    "data": by_data,
    "numpy": by_numpy,
    "state_dict().copy_": lambda layer, w: layer.state_dict()["codebook"].copy_(w),
    "state_dict().data.copy_": lambda layer, w: layer.state_dict()["codebook"].data.copy_(w),
    "register_buffer": lambda layer, w: layer.register_buffer("codebook", w.clone()),
    "_buffers": by_buffers,
}


def codes(k: int = 16, dim: int = 4, seed: int = 7) -> torch.Tensor:
    return torch.randn(k, dim, generator=torch.Generator().manual_seed(seed)) + 3


def batches(count: int, dim: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(50, dim, generator=draw) for _ in range(count)]


def same_state(a: FeatureQuantizer, b: FeatureQuantizer) -> bool:
    names = ("codebook", "ema_counts", "ema_sums", "initialized")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


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


# --- derived state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copy_", "data.copy_", "lerp_"])
def test_averages_that_copy_floats_alone_have_started(kind: str) -> None:
    model = FeatureQuantizer(4, 16)
    average = copy.deepcopy(model)
    for x in batches(4):
        model(x)
        for name, own in average.named_buffers():
            if own.is_floating_point():
                theirs = getattr(model, name)
                if kind == "lerp_":
                    own.data.lerp_(theirs, 0.5)
                else:
                    (own if kind == "copy_" else own.data).copy_(theirs)
    before = average.codebook.clone()
    assert "not started" not in repr(average)
    assert torch.equal(average.eval()(x), average.codebook[average.quantize(x).indices])
    average.train()(torch.full((2, 4), float("nan")))
    assert torch.equal(average.codebook, before)
    average(x)
    assert bool(average.initialized)
    torch.testing.assert_close(average.codebook, before, rtol=1.0, atol=1.0)
    loaded = FeatureQuantizer(4, 16)
    loaded.load_state_dict(average.state_dict() | {"initialized": torch.tensor(False)})
    assert bool(loaded.initialized)


def test_an_averaged_start_still_waits_for_data() -> None:
    model, average = FeatureQuantizer(4, 16), FeatureQuantizer(4, 16)
    for own, theirs in zip(average.buffers(), model.buffers(), strict=True):
        own.copy_(theirs)
    x = torch.randn(16, 4)
    assert torch.equal(average(x), x)


def check_loaded(loaded: FeatureQuantizer, source: FeatureQuantizer) -> None:
    """In evaluation and further training it does what its source does, with a center as good as any."""
    source, x = copy.deepcopy(source), torch.randn(40, 4) + 1000
    for a in (loaded, source):
        a.eval()
    assert torch.equal(loaded.quantize(x).indices, source.quantize(x).indices)
    assert torch.isfinite(loaded.center).all()
    assert (loaded.center - 1000).abs().max() < 50
    assert int(loaded.nonfinite_rows) == 0
    for a in (loaded, source):
        a.train()
    for _ in range(3):
        assert torch.equal(loaded(x), source(x))
    assert same_state(loaded, source)


def offset_source(**options: Any) -> FeatureQuantizer:
    layer = FeatureQuantizer(4, 16, precision="fast", **options)
    for x in batches(5):
        layer(x + 1000)
    return layer


@pytest.mark.parametrize("options", [{}, {"init": "normal"}, {"ema": "debiased"}], ids=str)
@pytest.mark.parametrize("way", ["assign", "dcp", "accelerate", "set_module_tensor", "functional_call"])
def test_states_that_come_around_load_state_dict(way: str, options: dict, tmp_path: Path) -> None:
    source = offset_source(**options)
    state = {name: value.clone() for name, value in source.state_dict().items()}
    layer = FeatureQuantizer(4, 16, precision="fast", **options)
    if way == "assign":
        layer.load_state_dict(state, assign=True)
    elif way == "dcp":
        checkpoint = pytest.importorskip("torch.distributed.checkpoint")
        checkpoint.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
        checkpoint.load(layer.state_dict(), checkpoint_id=tmp_path / "saved", no_dist=True)
    elif way == "functional_call":
        x = torch.randn(40, 4) + 1000
        before = copy.deepcopy(layer.eval())
        found = torch.func.functional_call(layer, state, (x,))
        assert torch.equal(found, source.eval()(x))
        found = torch.func.functional_call(layer, {"codebook": state["codebook"]}, (x,))
        assert torch.equal(found, source(x))
        assert same_state(layer, before)
        source.train()
        layer.train().load_state_dict(state)
    else:
        accelerate = pytest.importorskip("accelerate")
        with accelerate.init_empty_weights(include_buffers=True):
            layer = FeatureQuantizer(4, 16, precision="fast", **options)
        assert layer.codebook.is_meta
        if way == "accelerate":
            safetensors = pytest.importorskip("safetensors.torch")
            safetensors.save_file(state, tmp_path / "model.safetensors")
            accelerate.load_checkpoint_in_model(
                layer, str(tmp_path / "model.safetensors"), device_map={"": "cpu"}
            )
        else:
            for name, value in state.items():
                accelerate.utils.set_module_tensor_to_device(layer, name, "cpu", value=value)
    check_loaded(layer, source)


def test_an_ensemble_whose_base_has_no_memory() -> None:
    layers = [offset_source().eval() for _ in range(3)]
    params, buffers = torch.func.stack_module_state(layers)
    base, x = copy.deepcopy(layers[0]).to("meta"), torch.randn(20, 4) + 1000

    def run(params: dict, buffers: dict) -> torch.Tensor:
        return torch.func.functional_call(base, (params, buffers), (x,))

    found = torch.func.vmap(run)(params, buffers)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))


def test_offloaded_by_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    source = offset_source().eval()
    layer, x = copy.deepcopy(source), torch.randn(30, 4) + 1000
    accelerate.cpu_offload(layer, execution_device="cpu", offload_buffers=True)
    for _ in range(3):
        assert torch.equal(layer(x), source(x))


def tiny_pretrained() -> tuple[type, type]:
    transformers = pytest.importorskip("transformers")

    class TinyConfig(transformers.PretrainedConfig):
        model_type = "tiny-quantized"

    class Tiny(transformers.PreTrainedModel):
        config_class = TinyConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.linear = nn.Linear(4, 4)
            self.fq = FeatureQuantizer(4, 16, precision="fast", init=getattr(config, "start", "data"))
            self.post_init()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fq(x)

    return TinyConfig, Tiny


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("start", ["data", "normal"])
def test_from_pretrained(tmp_path: Path, start: str, compiled: bool) -> None:
    config, tiny = tiny_pretrained()
    model = tiny(config(start=start))
    for x in batches(5):
        model(x + 1000)
    model.save_pretrained(tmp_path)
    loaded = tiny.from_pretrained(tmp_path)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(loaded.eval(), backend="eager", fullgraph=True)
        assert torch.equal(run(x + 1000), model.eval()(x + 1000))
        model.train()
    check_loaded(loaded.fq, model.fq)


@pytest.mark.parametrize("missing", ["everything", "statistics"])
def test_from_pretrained_without_a_quantizer_starts_it_afresh(tmp_path: Path, missing: str) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    config, tiny = tiny_pretrained()
    model = tiny(config())
    model(batches(1)[0])
    model.save_pretrained(tmp_path)
    state = safetensors.load_file(tmp_path / "model.safetensors")
    keep = ("linear", "fq.codebook") if missing == "statistics" else ("linear",)
    state = {name: value for name, value in state.items() if name.startswith(keep)}
    safetensors.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    junk = [torch.full((1 << k,), float("nan")) for k in range(12)]  # for uninitialised memory to be such
    del junk
    loaded = tiny.from_pretrained(tmp_path)
    if missing == "statistics":
        expected = FeatureQuantizer(4, 16, init=model.fq.codebook)
        assert same_state(loaded.fq, expected)
    else:
        assert same_state(loaded.fq, FeatureQuantizer(4, 16))
        x = torch.randn(16, 4)
        assert torch.equal(loaded.train()(x), x)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "half and back"])
def test_copies_are_known_to_be_their_own(how: str) -> None:
    layer = offset_source(decay=0.5)
    if how == "half and back":
        made = copy.deepcopy(layer).half().float()
    else:
        made = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert made.witness.knows(made.codebook)
    check_loaded(made, layer)
    made.codebook.data.zero_()
    made(torch.randn(9, 4))
    assert (layer.codebook - 1000).abs().max() < 50


def test_inference_tensors_have_no_versions() -> None:
    with torch.inference_mode():
        layer = FeatureQuantizer(4, 16, init=codes())
        x = torch.randn(5, 4)
        first = layer(x)
        layer.codebook.add_(1)
        assert not torch.equal(layer(x), first)


def test_compiled_layers_see_writes_without_recompiling() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    layer, twin = FeatureQuantizer(4, 16), FeatureQuantizer(4, 16)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    frames = []
    ways = ["copy_", "data.copy_", "assignment", "rows", "numpy"]
    for way in [None, None, *ways, *ways]:
        if way is not None:
            WRITES[way](layer, codes())
            WRITES[way](twin, codes())
        for x in batches(2):
            torch.testing.assert_close(compiled(x), twin(x))
        frames.append(counter.frame_count)
        torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)
    assert frames[1] == frames[-1] <= 3
    torch.testing.assert_close(layer(x), twin(x))  # and back to eager
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)


# --- holding still ------------------------------------------------------------------------------------------


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


# --- small --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 5, 5), (3, 7, 8), (3, 8), (2, 8, 3, 4, 5)])
@pytest.mark.parametrize("options", [{}, {"heads": 2}, {"codebook_dim": 3}], ids=str)
def test_decoded_features_lie_in_memory_as_the_quantized(shape: tuple, options: dict) -> None:
    layer, x = FeatureQuantizer(8, 16, init="normal", **options).eval(), torch.randn(shape)
    out = layer.quantize(x)
    decoded = layer.decode(out.indices)
    assert decoded.stride() == out.quantized.stride()
    torch.testing.assert_close(decoded, out.quantized)


def test_what_cannot_be_scripted_or_nested_says_so() -> None:
    for layer in (FeatureQuantizer(4, 8), ResidualQuantizer(4, 8, num_levels=2)):
        for model in (layer, nn.Sequential(nn.Linear(4, 4), layer)):
            with pytest.raises(TypeError, match=r"torch\.export"):
                torch.jit.script(model)
        ragged = [torch.randn(3, 4), torch.randn(5, 4)]
        for kind in (torch.strided, torch.jagged):
            with pytest.raises(TypeError, match=r"nested.*lengths"):
                layer(torch.nested.nested_tensor(ragged, layout=kind))
        with pytest.raises(TypeError, match="dense"):
            layer(torch.randn(3, 4).to_sparse())


@pytest.mark.parametrize("strict", [True, False])
def test_the_advice_for_a_checkpoint_without_quantizer_works(strict: bool) -> None:
    net, plain = nn.Sequential(nn.Linear(4, 4), FeatureQuantizer(4, 8)), nn.Sequential(nn.Linear(4, 4))
    net(torch.randn(20, 4))
    expected = copy.deepcopy(net[1].state_dict())
    state = plain.state_dict()
    with pytest.raises(RuntimeError, match=r"layer\.state_dict\(prefix='1\.'\)"):
        net.load_state_dict(state, strict=strict)
    state.update(net[1].state_dict(prefix="1."))
    net.load_state_dict(state, strict=strict)
    assert torch.equal(net[0].weight, plain[0].weight)
    assert all(torch.equal(value, expected[name]) for name, value in net[1].state_dict().items())
