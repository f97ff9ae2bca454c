"""The study of feature quantization: intervals, pairing, the order of its runs, going on later."""

import dataclasses
import json
import math
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from benchmarks import machine
from benchmarks.results import machine_files, read_all
from benchmarks.studies import fqgan as study_fqgan
from benchmarks.studies.fqgan import ARMS, BASELINE, REFUSED, main, picture, plan, run_config, run_once
from benchmarks.studies.plot import plot
from benchmarks.studies.report import table, verdicts
from benchmarks.studies.results import (
    ACCURACY,
    COLUMNS,
    DIVERGED,
    FLOOR,
    OTHERS,
    STEP_TIME,
    Figures,
    Row,
    Setting,
    append,
    read,
)
from benchmarks.studies.setting import find_data
from benchmarks.studies.statistics import differences, overhead, student_interval
from benchmarks.studies.summary import summary
from fq_toolkit.fqgan.data import datasets
from fq_toolkit.fqgan.gan import config as configuration
from fq_toolkit.fqgan.gan import training as trainer
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError, DivergedError

SETTING = Setting(
    preset="digits",
    steps=4,
    samples=20,
    commit="abc",
    dirty=False,
    machine="2-core-test",
    device="cpu",
    threads=1,
    versions='torch 2.13.0, "quoted", python 3.11',
)
FID = "fid[digits-cnn]"
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


def rows_of(by_arm: dict[str, dict[int, float]], metric: str = FID, setting: Setting = SETTING) -> list[Row]:
    return [
        Row(setting, arm, seed, metric, value, "2026-01-01")
        for arm, by_seed in by_arm.items()
        for seed, value in by_seed.items()
    ]


# What a study trains


def test_options_of_a_preset_are_changed() -> None:
    setting = dataclasses.replace(
        SETTING, preset="mnist", options="num_codes=128 fq_layers=[0,1] fq_init=kmeans"
    )
    config = run_config(setting, "regularize", 3, data="somewhere")
    assert (config.num_codes, config.fq_layers, config.fq_init) == (128, (0, 1), "kmeans")
    assert (config.data, config.image_size, config.seed, config.steps) == ("somewhere", 16, 3, 4)
    assert setting.title == f"mnist, {setting.options}, digits"
    assert SETTING.title == "digits"
    for options, message in (
        ("num_code=3", "unknown option 'num_code'; did you mean 'num_codes'"),
        ("num_codes=many", "num_codes is 'many'"),
        ("fq=none", "--set fq=none: expected OPTION=VALUE; preset, data, fq, seed"),
        ("num_codes", "--set num_codes: expected OPTION=VALUE"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_config(dataclasses.replace(SETTING, options=options), "none", 0)


def test_where_images_come_from(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FQ_TOOLKIT_DATA", str(tmp_path))
    assert find_data("digits", None) == "digits"
    assert find_data("mnist", tmp_path) == str(tmp_path)
    with pytest.raises(ConfigError, match=r"mnist needs images: give --data PATH, or t10k-images"):
        find_data("mnist", None)
    with pytest.raises(ConfigError, match=r"biggan-cifar10 needs images: give --data PATH$"):
        find_data("biggan-cifar10", None)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cifar10_subset.npz").write_bytes(b"")
    assert find_data("cifar10-small", None) == str(tmp_path / "images" / "cifar10_subset.npz")


def test_pictures_of_settings_have_names_of_their_own(tmp_path) -> None:
    changed = dataclasses.replace(SETTING, options="num_codes=128 fq_layers=[0,1]")
    assert picture(tmp_path / "study.csv", SETTING).name == "study-digits.png"
    assert picture(tmp_path / "study.csv", changed).name == "study-digits-num_codes=128_fq_layers=_0_1_.png"
    append(tmp_path / "study.csv", rows_of({"none": {0: 1.0}}, setting=changed))
    assert [row.setting for row in read(tmp_path / "study.csv")] == [changed]


def test_seeds_to_search_on_are_others() -> None:
    assert {seed for _, seed in plan(ARMS, 3, first=100)} == {100, 101, 102}


def said(rows: list[Row]) -> str:
    return "\n".join(verdicts(Figures(rows, SETTING), baseline=BASELINE))


# Statistics

values = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(values, values), min_size=2, max_size=12))
def test_the_interval_of_the_differences_is_that_of_a_paired_t_test(pairs):
    base, arm = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = student_interval(list(differences(base, arm).values()))
    if found.sd < 1e-6:
        return  # scipy refuses to divide by no spread
    wanted = stats.ttest_rel(list(arm.values()), list(base.values())).confidence_interval(0.95)
    assert found.low == pytest.approx(wanted.low, rel=1e-9, abs=1e-9)
    assert found.high == pytest.approx(wanted.high, rel=1e-9, abs=1e-9)


def test_the_interval_of_known_numbers():
    # t(0.975, 3 degrees) = 3.182446; the values 1 2 3 4 have sd 1.290994
    found = student_interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.sd == pytest.approx(1.290994, rel=1e-6)
    assert found.high - found.mean == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-6)
    assert not found.includes_zero


def test_one_seed_has_an_interval_without_bounds():
    found = student_interval([3.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.includes_zero
    assert found.spread_is_unknown
    with pytest.raises(ValueError, match="at least one seed"):
        student_interval([])


def test_pairing_is_by_seed():
    base, arm = {3: 10.0, 1: 20.0, 7: 0.0}, {1: 21.0, 2: 5.0, 3: 12.0}
    assert differences(base, arm) == {1: 1.0, 3: 2.0}
    assert overhead(base, {2: 1.0}) is None


def test_the_overhead_is_a_geometric_mean():
    found = overhead({0: 1.0, 1: 1.0}, {0: 2.0, 1: 0.5})
    assert found.mean == pytest.approx(0)
    assert found.low > -1
    assert overhead({0: 1.0, 1: 3.0}, {0: 1.5, 1: 4.5}).mean == pytest.approx(0.5)


# The plan


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


def test_only_fq_and_the_seed_differ():
    one, other = (
        dataclasses.asdict(run_config(SETTING, arm, seed)) for arm, seed in (("none", 0), (ARMS[2], 5))
    )
    assert {name for name in one if one[name] != other[name]} == {"fq", "seed"}
    assert (one["steps"], one["eval_samples"]) == (SETTING.steps, SETTING.samples)
    assert one["fq_warmup"] == FQGANConfig().fq_warmup


# The results file


@given(st.sampled_from(ARMS), st.integers(0, 99), st.floats(allow_nan=False, allow_infinity=False))
def test_round_trip(tmp_path_factory, arm, seed, value):
    path = tmp_path_factory.mktemp("study") / "folder" / "study_fqgan-m.csv"
    row = Row(dataclasses.replace(SETTING, dirty=seed % 2 == 0), arm, seed, FID, value, "2026-01-01")
    append(path, [row])
    append(path, [row])
    assert read(path) == [row, row]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_row_that_was_cut_short_is_measured_again(tmp_path, cut):
    path = tmp_path / "study_fqgan-m.csv"
    whole, torn = rows_of({"none": {0: 1.0, 1: 2.0}})
    append(path, [whole, torn])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path) == [whole]
    assert Figures(read(path), SETTING).finished(FID) == {("none", 0)}
    append(path, [torn])
    assert read(path) == [whole, torn]


def test_a_file_with_other_columns_or_a_bad_cell_is_refused(tmp_path):
    path = tmp_path / "study_fqgan-m.csv"
    path.write_text("arm,seed\nnone,0\n")
    with pytest.raises(ValueError, match="move the file away"):
        read(path)
    path.unlink()
    append(path, rows_of({"none": {0: 1.0}}))
    path.write_text(path.read_text().replace(",1.0,", ",one,"))
    with pytest.raises(ValueError, match="line 2"):
        read(path)


@pytest.mark.parametrize(
    "other", [{"steps": 5}, {"commit": "def"}, {"dirty": True}, {"threads": 2}, {"samples": 21}]
)
def test_runs_of_another_setting_do_not_count(other):
    rows = rows_of({"none": {0: 1.0}}, setting=dataclasses.replace(SETTING, **other))
    assert Figures(rows, SETTING).finished(FID) == set()


def test_a_run_without_its_last_row_is_not_finished_and_a_diverged_one_is():
    rows = rows_of({"none": {0: 0.5}}, ACCURACY) + rows_of({"none": {1: 1.0}}, DIVERGED)
    assert Figures(rows, SETTING).finished(FID) == {("none", 1)}


def test_other_results_do_not_read_those_of_a_study(tmp_path):
    append(tmp_path / "study_fqgan-m.csv", rows_of({"none": {0: 1.0}}))
    assert machine_files(tmp_path) == []
    assert read_all(tmp_path) == []


# What it says

BASE = {0: 10.0, 1: 20.0, 2: 30.0}


def test_an_interval_that_includes_0_shows_no_difference():
    text = said(rows_of({"none": BASE, "regularize": {0: 11.0, 1: 19.0, 2: 30.5}}))
    assert "The interval includes 0: this shows no difference." in text


@pytest.mark.parametrize(("shift", "word"), [(-5.0, "better"), (5.0, "worse")])
def test_pairing_shows_what_the_spread_of_the_seeds_would_hide(shift, word):
    arm = {seed: value + shift + 0.1 * seed for seed, value in BASE.items()}
    assert f"excludes 0: regularize is {word} here" in said(rows_of({"none": BASE, "regularize": arm}))


def test_a_higher_accuracy_is_better():
    base, arm = {0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.61, 1: 0.7, 2: 0.8}
    assert "regularize is better" in said(rows_of({"none": base, "regularize": arm}, ACCURACY))


def test_what_cannot_be_compared_is_said():
    one = rows_of({"none": {0: 1.0}, "regularize": {0: 2.0}})
    assert "needs at least 2 seeds" in said(one)
    equal = rows_of({"none": {0: 1.0, 1: 2.0}, "regularize": {0: 1.5, 1: 2.5}})
    assert "without a spread, no interval" in said(equal)
    assert "no run of none" in said(rows_of({"regularize": BASE}))
    assert "regularize diverged with seed 4" in said(rows_of({"regularize": {4: 1.0}}, DIVERGED))
    assert "step times are disturbed" in said(rows_of({"none": {0: 1.3}}, OTHERS))


def test_the_table_has_means_differences_and_the_ruler(tmp_path):
    rows = rows_of({"none": BASE, "regularize": {seed: value + 1 + seed for seed, value in BASE.items()}})
    rows += rows_of({"none": dict.fromkeys(BASE, 0.5)}, FLOOR)
    rows += rows_of({"none": dict.fromkeys(BASE, 0.1), "regularize": {0: 0.11, 1: 0.12, 2: 0.11}}, STEP_TIME)
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(table(Figures(rows, SETTING), baseline=BASELINE))
    text = captured.get()
    for part in (FID, "n=20", "floor 0.50", "+2 ", "-0.484 to +4.48", "+13.2 %"):
        assert part in text
    path = tmp_path / "picture.png"
    plot(Figures(rows, SETTING), path, baseline=BASELINE)
    assert path.stat().st_size > 10_000


def test_the_summary_has_a_line_for_each_arm_of_each_setting():
    mnist = dataclasses.replace(SETTING, preset="mnist", options="decay=0.8")
    worse = {seed: value + 1 + 0.1 * seed for seed, value in BASE.items()}
    rows = rows_of({"none": BASE, "regularize": worse})
    rows += rows_of({"none": BASE, "regularize": {0: 0.0, 1: 9.0, 2: 1.0}}, setting=mnist)
    rows += rows_of({"regularize": {0: 0.5, 1: 0.25}}, "usage/block0")
    lines = summary(rows, ("none", "regularize", "straight_through"), baseline=BASELINE).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:6]] == ["none", "regularize"] * 2
    assert "digits; fid[digits-cnn], n 20 |" in lines[2]
    assert "| **+1.10 (+0.85 to +1.35)** |" in lines[3]
    assert "| 38% |" in lines[3]
    assert "mnist, decay=0.8" in lines[4]
    assert "**" not in lines[5]
    assert lines[-1].startswith("Commit abc; 2-core-test, threads: 1;")


def test_the_summary_borrows_the_baseline_and_leaves_out_disturbed_times() -> None:
    changed = dataclasses.replace(SETTING, options="channels=16 num_codes=8 fq_layers=[0]")
    plain = dataclasses.replace(SETTING, options="channels=16")
    other = dataclasses.replace(SETTING, options="channels=8")
    rows = rows_of({"regularize": {seed: value + 2 for seed, value in BASE.items()}}, setting=changed)
    rows += rows_of({"regularize": {0: 1.2}}, STEP_TIME, setting=changed)
    rows += rows_of({"none": {0: 1.0}}, STEP_TIME, setting=plain)
    rows += rows_of({"none": {seed: 0.0 for seed in BASE}}, setting=other)
    rows += rows_of({"none": BASE}, setting=plain)
    line = summary(rows, ARMS, baseline=BASELINE).splitlines()[2]
    assert "| +2.00 |" in line
    assert "| +20.0 % |" in line
    busy = rows_of({"regularize": {0: 1.5}}, OTHERS, setting=changed)
    assert "| disturbed |" in summary(rows + busy, ARMS, baseline=BASELINE).splitlines()[2]


# Runs


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
    def stop(config: FQGANConfig, out: Path, reporter: object) -> trainer.TrainResult:
        if not between_steps:  # while something is built or read, no handler waits
            raise KeyboardInterrupt
        return trainer.TrainResult(out, 2, 1.0, number, None, True)

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
