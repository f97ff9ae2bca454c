"""The commands of FQ-GAN runs."""

from pathlib import Path

import pytest

from fq_toolkit.fqgan.gan import commands
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.data.image_data import picture_size

pytestmark = pytest.mark.usefixtures("small_and_plain")


def test_commands(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.png")
    assert commands.sample_command(finished, ["--interpolate", "4", "--rows", "2", "--out", out]) == 0
    assert picture_size(tmp_path / "a.png") == (4 * 68 + 4, 2 * 68 + 4)
    assert commands.sample_command(finished, ["--truncation-sweep", "0.3", "1", "--classes", "3"]) == 0
    assert (finished / "sweep-seed0.png").exists()
    with pytest.raises(ConfigError, match="give one"):
        commands.sample_command(finished, ["--truncation-sweep", "0.3", "--interpolate", "3"])
    assert commands.evaluate_command(finished, ["--samples", "12", "--truncations", "0.5"]) == 0
    assert "truncation 0.5: fid[digits-cnn] " in capsys.readouterr().out
    words = ["--block", "0", "--images", "20", "--codes", "2", "--patches", "1", "--out", str(tmp_path)]
    assert commands.codebook_command(finished, words) == 0
    assert "codebook-block0-tsne.png, from the top, real / generated: code " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="codes is 0"):
        commands.codebook_command(finished, ["--codes", "0"])
    with pytest.raises(ConfigError, match="has a trainer of its own: fq-toolkit train ugatit"):
        commands.train_command(["--preset", "u-gat-it"])


@pytest.mark.parametrize("words", [["--samples", "0"], ["--samples", "1"], ["--samples", "-5"]])
def test_a_number_of_samples_that_cannot_be_measured(finished: Path, words: list[str]) -> None:
    for more in ([], ["--truncations", "0.5"]):
        with pytest.raises(ConfigError, match=r"samples is .*; expected at least 2"):
            commands.evaluate_command(finished, words + more)


@pytest.mark.parametrize("seed", [-1, 2**40, 2**70])
def test_any_seed_works_or_is_refused(finished: Path, tmp_path: Path, seed: int) -> None:
    small = ["--block", "0", "--images", "20", "--codes", "1", "--patches", "1", "--seed", str(seed)]
    for command, words in (
        (commands.codebook_command, [*small, "--out", str(tmp_path)]),
        (commands.sample_command, ["--rows", "1", "--seed", str(seed), "--out", str(tmp_path / "a.png")]),
    ):
        if seed < 2**64:
            assert command(finished, words) == 0
        else:
            with pytest.raises(ConfigError, match="at most 64 bits"):
                command(finished, words)
