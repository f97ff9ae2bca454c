"""The pretraining case: its gate, a quick run, its target."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.__main__ import main
from benchmarks.cases import BY_NAME
from benchmarks.pretraining.contenders import (
    CASE,
    OURS,
    PORT,
    Pretraining,
    batch_of_arrays,
    batch_of_samples,
    check_pretraining,
)
from benchmarks.pretraining.problem import SHAPES, StepProblem, StepShape
from benchmarks.pretraining.targets import pretraining_targets
from tests.benchmarks.rows import BLANK


def test_the_gate_is_green_and_finds_what_is_wrong() -> None:
    class Doubled(Pretraining):
        def forward(self, *batch: Tensor) -> Tensor:
            return 2 * super().forward(*batch)

    class Deaf(Pretraining):
        def forward(self, ids: Tensor, mask: Tensor, *rest: Tensor) -> Tensor:
            return super().forward(ids, torch.ones_like(mask), *rest)

    assert check_pretraining() == []
    assert any("loss is" in finding for finding in check_pretraining(factory=Doubled))
    assert any("gradient of" in finding for finding in check_pretraining(factory=Deaf))


def test_both_batches_hold_the_same_time_steps() -> None:
    problem = StepProblem(StepShape("tiny", 3, 64))
    short, long = batch_of_arrays(problem), batch_of_samples(problem)
    length = short[0].shape[1]
    assert length < long[0].shape[1] == 80
    assert not long[0][:, length:].any()
    for ours, theirs in zip(short, long, strict=True):
        assert torch.equal(ours, theirs[:, : ours.shape[1]] if ours.ndim == 2 else theirs)


def test_sizes_keep_the_released_proportions() -> None:
    for shape in SHAPES:
        config = shape.config()
        assert (config.text_layers, config.cross_layers) == (9, 4)
        assert config.intermediate_size == 4 * config.hidden_size
        assert config.vocab_size / config.hidden_size == pytest.approx(30_522 / 768, rel=0.01)
        assert config.vision_size / config.hidden_size == pytest.approx(2_176 / 768, rel=0.01)
    assert len({shape.width for shape in SHAPES}) == 3


def test_a_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--case", CASE, "--quick"]) == 0
    printed = capsys.readouterr().out
    assert f"gate {CASE}: green" in printed
    assert OURS in printed
    assert PORT in printed
    assert [shape.layout for shape in BY_NAME[CASE].quick_shapes] == ["steps"]


def _rows(gains: list[float]) -> list:
    return [
        replace(BLANK, case=CASE, shape=shape.name, contender=name, median_ms=time)
        for shape, gain in zip(SHAPES, gains, strict=True)
        for name, time in ((OURS, 10.0), (PORT, 10.0 * gain))
    ]


def test_the_target_is_that_of_the_least_gain() -> None:
    (met,) = pretraining_targets(_rows([2.5, 2.1, 3.0]))
    assert (met.word, met.value) == ("met", pytest.approx(2.1))
    (missed,) = pretraining_targets(_rows([2.5, 1.9, 3.0]))
    assert missed.word == "missed"
    (absent,) = pretraining_targets(_rows([2.5, 1.9, 3.0])[:4])
    assert absent.word == "not measured"


def test_the_port_is_a_module_of_released_names() -> None:
    from benchmarks.pretraining.port import ReleasedPretraining

    config = StepShape("tiny", 1, 64, text_layers=1, cross_layers=1).config()
    names = dict(nn.Module.named_parameters(ReleasedPretraining(config, 36)))
    for name in (
        "bert.lalayer.0.attention.self.query.weight",
        "bert.addlayer.0.visual_attention.att.key.bias",
        "bert.addlayer.0.visn_self_att.output.LayerNorm.weight",
        "bert.vision_encoder.visn_fc.weight",
        "mlmhead.predictions.transform.dense.weight",
        "next_action.linear.weight",
    ):
        assert name in names
