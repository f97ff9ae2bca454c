"""The study of schedules and injections: its arms, going on later, its table and picture."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.studies import optimus as study_optimus
from benchmarks.studies.optimus import (
    ARMS,
    BASE,
    COLUMNS,
    CYCLICAL,
    INJECTION_ARMS,
    LAST,
    METRICS,
    PLAIN,
    cell,
    main,
    run_config,
    table,
)
from benchmarks.studies.results import DIVERGED, Figures, Row, Setting, read
from fq_toolkit.optimus.data import checked_cache
from fq_toolkit.optimus.tasks.vae.config import preset
from fq_toolkit.training.errors import DivergedError

SETTING = Setting("captions", 4, 20, "abc", False, "2-core-test", "cpu", 1, "torch 2.13.0")


@pytest.fixture
def tiny(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Smallest sizes, two arms and the reference; returns where results go."""
    small = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 400, "batch_size": 4, "max_length": 40}
    monkeypatch.setattr(study_optimus, "BASE", dataclasses.replace(BASE, **small))
    monkeypatch.setattr(
        study_optimus, "_QUICK", {"steps": 2, "eval_sentences": 8, "iw_samples": 2, "limit": 80}
    )
    monkeypatch.setattr(study_optimus, "ARMS", {name: ARMS[name] for name in ("monotonic", CYCLICAL, PLAIN)})
    monkeypatch.setattr(checked_cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("FQ_TOOLKIT_DATA", str(shared_data))
    return tmp_path / "study.csv"


def test_arms_differ_in_what_they_are_called_after(shared_data: Path) -> None:
    configs = {arm: run_config(arm, 0, quick=False) for arm in ARMS}
    base = configs["cyclical"]
    for arm, config in configs.items():
        differing = {
            field.name
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != getattr(base, field.name)
        }
        assert differing == set(ARMS[arm])
        assert config.steps == BASE.steps
    assert configs["constant beta 1"].schedule == "constant"
    assert configs[f"{CYCLICAL}, both"].mode == "both"


def test_injections_differ_in_the_mode_alone(shared_data: Path) -> None:
    configs = {mode: run_config(mode, 0, quick=False, case="injection") for mode in INJECTION_ARMS}
    for mode, config in configs.items():
        assert config == dataclasses.replace(configs["memory"], mode=mode)
    captions = run_config(CYCLICAL, 0, quick=False)
    assert configs["memory"] == dataclasses.replace(captions, init_std=0.02)


def test_the_study_runs_and_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, ran = study_optimus.run_once, []

    def stopping(arm: str, config: object) -> dict[str, float]:
        ran.append(arm)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(arm, config)  # type: ignore[arg-type]

    monkeypatch.setattr(study_optimus, "run_once", stopping)
    assert main(["--quick", "--results", str(tiny)]) == 130
    assert main(["--quick", "--results", str(tiny)]) == 0
    assert ran == ["monotonic", CYCLICAL, PLAIN, PLAIN]
    rows = read(tiny)
    assert {row.arm for row in rows} == {"monotonic", CYCLICAL, PLAIN}
    figures = Figures(rows, rows[0].setting)
    assert set(METRICS.values()) == {row.metric for row in rows if row.arm == CYCLICAL}
    for by_seed in figures.by_arm("sentences").values():
        assert by_seed == {0: 8.0}
    # An untrained decoder knows nothing of a latent: with and without, it is about as good.
    words = {arm: by_seed[0] for arm, by_seed in figures.by_arm(LAST).items()}
    assert words[PLAIN] == pytest.approx(words["monotonic"], rel=0.3)
    assert tiny.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["--report", "--results", str(tiny)]) == 0
    assert f"| {PLAIN} |" in capsys.readouterr().out


def test_the_grammar_is_a_case_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"steps": 2, "layers": 1, "width": 16, "heads": 2, "batch_size": 4, "limit": 40}
    small |= {"eval_sentences": 4, "iw_samples": 1, "eval_analogies": 6}
    monkeypatch.setattr(study_optimus, "_QUICK", small)
    path = tmp_path / "grammar.csv"
    assert main(["--case", "grammar", "--quick", "--results", str(path)]) == 0
    figures = Figures(read(path), read(path)[0].setting)
    assert figures.by_arm("analogies right") == {"fq-toolkit train optimus": {0: 0.0}}
    assert {"number right", "factor changed", "others kept", LAST} <= set(figures.values)
    assert figures.setting.title.startswith("grammar-quick, 1 layers x 16")
    assert "| | analogies right | factor changed |" in capsys.readouterr().out
    assert run_config("fq-toolkit train optimus", 3, quick=False, case="grammar") == dataclasses.replace(
        preset("grammar"), seed=3, device="cpu"
    )


def test_a_run_that_diverged_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(*_: object, **__: object) -> None:
        raise DivergedError("a loss")

    monkeypatch.setattr(study_optimus, "train", diverging)
    assert main(["--quick", "--results", str(tiny)]) == 0
    rows = read(tiny)
    assert {row.arm for row in rows if row.metric == DIVERGED} == {"monotonic", CYCLICAL}
    assert "monotonic diverged with seed 0" in table(Figures(rows, rows[0].setting), tuple(ARMS))


def test_no_captions_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQ_TOOLKIT_DATA", str(tmp_path))
    assert main(["--quick", "--results", str(tmp_path / "a.csv")]) == 2


def test_the_table_has_means_and_deviations() -> None:
    rows = [Row(SETTING, "monotonic", seed, name, 2.0 * seed, "today") for seed in (0, 1) for name in COLUMNS]
    said = table(Figures(rows, SETTING), tuple(ARMS))
    assert said.splitlines()[0] == f"| | {' | '.join(COLUMNS)} | seeds |"
    assert said.splitlines()[2:] == ["| monotonic |" + " 1.00 ± 1.41 |" * len(COLUMNS) + " 2 |"]
    assert cell({0: 3.0}) == "3.00"
    assert cell({}) == "–"
