"""The latent cases: the loop of the original, the gate, quick runs, targets, lines of the results page."""

from dataclasses import replace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import BY_NAME
from benchmarks.contender import Task
from benchmarks.latent import gate as latent_gate
from benchmarks.latent.generate import INJECTED, ORIGINAL, PLAIN, generate, original_loop
from benchmarks.latent.problem import GENERATION_SHAPES, QUICK_TEXT, TRAINING_SHAPES, TextProblem
from benchmarks.latent.targets import GENERATE, MEMORY_SHAPE, TRAIN, latent_section, latent_targets
from benchmarks.memory import allocated_peak
from benchmarks.timing import interleave
from tests.benchmarks.rows import BLANK


def _row(case, shape, contender, milliseconds, **more):
    return replace(BLANK, case=case, shape=shape.name, contender=contender, median_ms=milliseconds, **more)


def _rows(over_plain=1.02, over_loop=25.0, peak=1000, training=1.01):
    rows = []
    for shape in GENERATION_SHAPES:
        rows += [
            _row(GENERATE, shape, INJECTED, 100 * over_plain, peak_extra_bytes=peak),
            _row(GENERATE, shape, PLAIN, 100.0, peak_extra_bytes=1000, kind="base"),
            _row(GENERATE, shape, ORIGINAL, 100 * over_plain * over_loop),
        ]
    for step in TRAINING_SHAPES:
        rows += [
            _row(TRAIN, step, INJECTED, 50 * training, peak_extra_bytes=1000 + 3 * step.adapter_bytes),
            _row(TRAIN, step, PLAIN, 50.0, peak_extra_bytes=1000, kind="base"),
        ]
    return rows


def _words(rows):
    return [verdict.word for verdict in latent_targets(rows)]


def test_targets_are_judged():
    assert _words(_rows()) == ["met"] * 7
    assert _words(_rows(over_plain=1.04)) == ["missed"] + ["met"] * 6
    assert _words(_rows(over_loop=6.0)) == ["met", "met", "missed"] + ["met"] * 4
    assert _words(_rows(over_loop=4.0))[1:3] == ["missed", "missed"]
    assert _words(_rows(training=1.06))[3] == "missed"
    slot = MEMORY_SHAPE.slot_bytes
    assert [_words(_rows(peak=1000 + slot))[4], _words(_rows(peak=2000 + 2 * slot))[4]] == ["met", "missed"]


def test_ratios_are_those_of_the_rounds_where_there_are_some():
    paired = [replace(row, over_base=1.02) if row.contender == INJECTED else row for row in _rows(1.5)]
    assert _words(_rows(1.5))[0] == "missed"
    assert _words(paired)[0] == "met"


def test_what_was_not_measured_is_said():
    assert _words([]) == ["not measured"] * 7
    assert _words([row for row in _rows() if row.shape != "B8 T128"])[0] == "not measured"
    assert "not measured" in "\n".join(latent_section([]))


def test_the_lines_hold_tokens_per_second():
    lines = latent_section(_rows())
    assert "| B 8, T 128 | 10,039 | 10,240 | 402 | +2.0 % | 25.0x |" in lines
    assert "| B 1, T 128, 12 x 768 | 1,255 | 1,280 | 50 | +2.0 % | 25.0x |" in lines
    assert "B 8, T 64: 50 ms without a latent, +1.0 % with one; B 8, T 64, dropout 0.1: 50 ms" in lines[-2]


def test_the_loop_of_the_original_is_a_greedy_search():
    problem = TextProblem(QUICK_TEXT[1])
    model, length = problem.decoder("both"), problem.shape.length
    tokens = generate(model, problem.start, length, latent=problem.latents)
    assert tokens.shape == (problem.shape.batch, 1 + length)
    for row in range(problem.shape.batch):
        latent = problem.latents[row : row + 1]
        loop = original_loop(model, problem.start[:1], latent, length)
        assert torch.equal(loop[0], tokens[row])
        with torch.no_grad():  # all at once: each token is the likeliest after those before it
            logits = model(loop, latent=latent).logits[0, :-1]
        assert torch.equal(logits.argmax(-1), loop[0, 1:])


def test_all_contenders_start_from_the_same_weights():
    problem = TextProblem(QUICK_TEXT[0])
    plain, injected = problem.decoder().state_dict(), problem.decoder("memory").state_dict()
    assert {name for name in injected if name not in plain} == {"latent_injection.memory.weight"}
    assert all(torch.equal(injected[name], value) for name, value in plain.items())


def test_shared_decoders_read_the_same_memory():
    problem = TextProblem(QUICK_TEXT[0])
    plain, injected = (
        dict(problem.decoder(mode, shared=True).state_dict(keep_vars=True)) for mode in (None, "memory")
    )
    assert all(injected[name].data_ptr() == value.data_ptr() for name, value in plain.items())
    own = problem.decoder().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.items())
    assert own["lm_head.weight"].data_ptr() != plain["lm_head.weight"].data_ptr()


def test_an_original_call_stands_for_the_batch():
    (original,) = [entry for entry in BY_NAME[GENERATE].contenders if entry.name == ORIGINAL]
    task = original.build(TextProblem(QUICK_TEXT[1]))
    assert [task.setup() for _ in range(4)] == [0, 1, 2, 0]
    timed = interleave({"loop": task}, rounds=6, sampler=lambda one, calls: 7.0)  # takes part in one of five
    assert timed["loop"].samples == (21.0, 21.0)
    assert (
        interleave({"x": Task(lambda _: None)}, rounds=1, sampler=lambda one, calls: 7.0)["x"].median == 7.0
    )


@pytest.mark.parametrize(("case", "adapters"), [(GENERATE, 0), (TRAIN, 3)])
def test_a_latent_takes_a_slot_and_its_adapter(case, adapters):
    """To the byte, but for scalars; of a first call, in which gradients and moments are made."""
    problem = TextProblem(QUICK_TEXT[1])
    problem.prepare()
    contenders = {contender.name: contender for contender in BY_NAME[case].contenders}
    assert BY_NAME[case].memory == "tensors"
    plain, injected = (allocated_peak(contenders[name].build(problem)) for name in (PLAIN, INJECTED))
    shape = problem.shape
    assert plain < injected <= plain + adapters * shape.adapter_bytes + shape.slot_bytes + 1024


def test_the_gate_is_green():
    assert latent_gate.check_latent() == []


@pytest.mark.parametrize("fault", ["no latent", "another row"])
def test_the_gate_sees_wrong_tokens(monkeypatch, fault):
    def wrong(model, start, length, **latent):
        if latent:
            latent["latent"] = 0 * latent["latent"] if fault == "no latent" else latent["latent"].roll(1, 0)
        return generate(model, start, length, **latent)

    monkeypatch.setattr(latent_gate, "generate", wrong)
    assert any("differs from the loop" in finding for finding in latent_gate.check_latent())


def test_a_quick_run_prints_and_writes_nothing(capsys, tmp_path):
    words = ["run", "--quick", "--rounds", "1", "--threads", "1", "--no-memory", "--results", str(tmp_path)]
    before = torch.get_num_threads()
    try:
        assert main([*words, "--case", GENERATE, "--case", TRAIN]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("gate latent: green", INJECTED, PLAIN, ORIGINAL))
    assert list(tmp_path.iterdir()) == []
