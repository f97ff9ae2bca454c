"""What a study of GANs trains: options that differ from a preset, and where images come from."""

import dataclasses

import pytest

from benchmarks.studies.fqgan import ARMS
from benchmarks.studies.setting import find_data, run_config
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.training.errors import ConfigError
from tests.benchmarks.studies.figures import SETTING


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


def test_only_fq_and_the_seed_differ():
    one, other = (
        dataclasses.asdict(run_config(SETTING, arm, seed)) for arm, seed in (("none", 0), (ARMS[2], 5))
    )
    assert {name for name in one if one[name] != other[name]} == {"fq", "seed"}
    assert (one["steps"], one["eval_samples"]) == (SETTING.steps, SETTING.samples)
    assert one["fq_warmup"] == FQGANConfig().fq_warmup
