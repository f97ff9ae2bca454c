"""The study of feature quantization: the order of its runs, going on later, stops and refusals."""

import dataclasses
import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import machine
from benchmarks.studies import fqgan as study_fqgan
from benchmarks.studies.fqgan import ARMS, REFUSED, main, picture, plan, run_once
from benchmarks.studies.results import (
    ACCURACY,
    COLUMNS,
    DIVERGED,
    FLOOR,
    OTHERS,
    STEP_TIME,
    append,
    read,
)
from fq_toolkit.fqgan.data import datasets
from fq_toolkit.fqgan.gan import config as configuration
from fq_toolkit.fqgan.gan import training as trainer
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.training import session
from fq_toolkit.training.errors import DivergedError
from tests.benchmarks.studies.figures import FID, SETTING, rows_of

TINY = FQGANConfig(
    fq="regularize",
    steps=4,
    fq_warmup=3,
    num_codes=8,
    channels=4,
    latent_size=8,
    batch_size=8,
    eval_samples=20,
    device="cpu",
)


def test_seeds_to_search_on_are_others() -> None:
    assert {seed for _, seed in plan(ARMS, 3, first=100)} == {100, 101, 102}


@given(st.permutations(ARMS), st.integers(1, 9), st.integers(0, 30))
def test_a_study_that_stops_anywhere_is_balanced(arms, seeds, stop):
    runs = plan(arms, seeds)
    assert sorted(runs) == sorted((arm, seed) for arm in arms for seed in range(seeds))
    counts = Counter(arm for arm, _ in runs[:stop])
    assert max(counts.values(), default=0) - min(counts[arm] for arm in arms) <= 1
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)


def test_no_arm_is_always_the_first():
    runs = plan(ARMS, 6)
    assert Counter(runs[start][0] for start in range(0, len(runs), len(ARMS))) == dict.fromkeys(ARMS, 2)


def test_pictures_of_settings_have_names_of_their_own(tmp_path) -> None:
    changed = dataclasses.replace(SETTING, options="num_codes=128 fq_layers=[0,1]")
    assert picture(tmp_path / "study.csv", SETTING).name == "study-digits.png"
    assert picture(tmp_path / "study.csv", changed).name == "study-digits-num_codes=128_fq_layers=_0_1_.png"
    append(tmp_path / "study.csv", rows_of({"none": {0: 1.0}}, setting=changed))
    assert [row.setting for row in read(tmp_path / "study.csv")] == [changed]


@pytest.fixture
def tiny(monkeypatch, tmp_path_factory):
    """Options and data of runs that take a second, on a machine whose commit does not change meanwhile."""
    threads = torch.get_num_threads()
    few = datasets.load_digits()
    few = few._replace(images=few.images[:300], labels=few.labels[:300])
    cache = tmp_path_factory.getbasetemp() / "study-cache"
    monkeypatch.setattr(extractors, "cache_folder", lambda: cache)  # the kernels stay in theirs: built once
    monkeypatch.setattr(extractors, "EPOCHS", 1)
    monkeypatch.setitem(datasets.DATASETS, "digits", lambda: few)
    monkeypatch.setitem(configuration.PRESETS, "digits", TINY)
    monkeypatch.setattr(session, "plot_curves", lambda metrics, target, title: target.write_bytes(b""))
    monkeypatch.setattr(study_fqgan, "run_gates", lambda names, device: {})
    monkeypatch.setattr(machine, "commit", lambda: ("abc", False))
    yield TINY
    torch.set_num_threads(threads)


def words(folder: Path, *more: str) -> list[str]:
    return ["--results", str(folder), "--threads", "1", *more]


def test_quick_compares_every_arm_and_writes_nothing(tiny, capsys, tmp_path):
    assert main(words(tmp_path, "--quick", "--steps", "5")) == 0
    printed = capsys.readouterr().out
    for part in (*ARMS, FID, "95 % interval", "2 seeds paired", "usage/block0", STEP_TIME, "no results file"):
        assert part in printed
    assert list(tmp_path.iterdir()) == []


def test_a_study_goes_on_where_it_was(tiny, capsys, tmp_path, monkeypatch):
    begun = []

    def counted(config: FQGANConfig, folder: Path) -> dict[str, float]:
        begun.append((config.fq, config.seed))
        return run_once(config, folder)

    monkeypatch.setattr(study_fqgan, "run_once", counted)
    first = words(tmp_path / "results", "--arms", "none", "regularize", "--seeds", "1")
    assert main(first) == 0
    (path,) = (tmp_path / "results").glob("study_fqgan-*.csv")
    before = path.read_text()
    assert main(first) == 0
    assert path.read_text() == before
    assert begun == [("none", 0), ("regularize", 0)]
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert main([*first[:-1], "2", "--keep", str(tmp_path / "kept")]) == 0
    assert sorted(begun[2:]) == [("none", 1), ("regularize", 1)]
    assert path.read_text().startswith(before)

    rows = read(path)
    assert tuple(path.read_text().split("\n", 1)[0].split(",")) == COLUMNS
    assert {row.setting for row in rows} == {rows[0].setting}
    others = {f"{name}[digits-cnn]" for name in ("kid", "precision", "recall")}
    metrics = {row.metric for row in rows if row.arm == "none"}
    assert metrics - {OTHERS} == {FLOOR, ACCURACY, STEP_TIME, FID} | others
    assert [row.metric for row in rows if row.arm == "none"][-1] == FID  # where it is, the others are
    assert all(row.value > 0 for row in rows if row.metric == STEP_TIME)
    kept = {folder.name.rpartition("-seed")[2][0]: folder for folder in (tmp_path / "kept").glob("*-none-*")}
    evaluation = json.loads((kept["1"] / "evaluation.json").read_text())
    assert [r.value for r in rows if (r.arm, r.seed, r.metric) == ("none", 1, FID)] == [evaluation["fid"]]
    assert (path.with_name(f"{path.stem}-digits.png")).stat().st_size > 10_000
    capsys.readouterr()
    assert main(words(tmp_path / "results", "--report")) == 0
    assert "2 seeds paired" in capsys.readouterr().out


def test_the_order_of_the_runs_does_not_change_their_figures(tiny, tmp_path):
    def figures(arm: str, name: str) -> dict[str, float]:
        found = run_once(dataclasses.replace(tiny, fq=arm), tmp_path / name)
        return {metric: value for metric, value in found.items() if metric not in (STEP_TIME, OTHERS)}

    alone = figures("none", "a")
    assert figures("straight_through", "b") != alone
    assert figures("none", "c") == alone


def test_with_one_seed_all_arms_start_alike(tiny):
    starts = []
    for arm in ARMS:
        config = dataclasses.replace(tiny, fq=arm, seed=5)
        gan = trainer.GANTask(config, datasets.load_dataset("digits"), session.make_accelerator(config))
        weights = [*gan.generator.parameters(), *gan.discriminator.parameters()]
        starts.append([*(weight.detach() for weight in weights), torch.rand(3), gan.order.next()])
    for start in starts[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(start, starts[0], strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("between_steps", [True, False])
def test_a_stopped_run_is_not_counted(tiny, capsys, tmp_path, monkeypatch, number, between_steps):
    def stop(config: FQGANConfig, out: Path, reporter: object) -> session.TrainResult:
        if not between_steps:  # while something is built or read, no handler waits
            raise KeyboardInterrupt
        return session.TrainResult(out, 2, 1.0, number, None, True)

    monkeypatch.setattr(study_fqgan, "train", stop)
    wanted = number if between_steps else signal.SIGINT
    assert main(words(tmp_path, "--seeds", "1")) == 128 + wanted
    assert f"stopped by {wanted.name}" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.csv")
    assert read(path) == []


def test_a_run_that_diverges_is_a_result(tiny, capsys, tmp_path, monkeypatch):
    def diverge(config: FQGANConfig, out: Path, reporter: object) -> None:
        raise DivergedError("a loss is not finite")

    monkeypatch.setattr(study_fqgan, "train", diverge)
    assert main(words(tmp_path, "--arms", "regularize", "--seeds", "2")) == 0
    assert "regularize diverged with seed 0, 1" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.csv")
    assert {row.metric for row in read(path)} == {DIVERGED}


def test_a_red_gate_refuses(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(study_fqgan, "run_gates", lambda names, device: {"layer": ["deliberately wrong"]})
    assert main(words(tmp_path)) == REFUSED
    assert "deliberately wrong" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_wrong_words(tiny, capsys, tmp_path):
    assert main(words(tmp_path / "absent", "--report")) == 1
    assert "no rows" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(words(tmp_path / "file", "--seeds", "1")) == 1
    assert "cannot write" in capsys.readouterr().err
    for wrong in (["--seeds", "0"], ["--arms", "all"], ["--preset", "none"]):
        with pytest.raises(SystemExit) as left:
            main(wrong)
        assert left.value.code == 2
