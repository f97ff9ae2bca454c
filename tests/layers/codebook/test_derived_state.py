"""What is not saved follows from what is: after loads, copies and averages that go around the layer."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fq_toolkit.layers import FeatureQuantizer
from tests.layers.codebook.writes import WRITES, batches, codes, same_state


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
