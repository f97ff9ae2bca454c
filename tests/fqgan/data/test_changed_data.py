"""A run goes on with the images it was started with, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fq_toolkit.cli import main
from fq_toolkit.fqgan.data import pixels
from fq_toolkit.fqgan.data.pixels import fingerprint
from tests.fqgan.data.image_data import write_image

SMALL = ["--steps", "2", "--batch-size", "4", "--device", "cpu", "--evaluate-every", "0"]
FQGAN = [*SMALL, "--channels", "4", "--latent-size", "4", "--eval-samples", "4", "--extractor", "random-cnn"]


def write(folder: Path, *names: str) -> None:
    for place, name in enumerate(names):
        for i in range(6):
            write_image(folder / name / f"{i}.png", seed=10 * place + i)


def one_more(folder: Path, name: str) -> None:
    write_image(folder / name / "9.png", seed=99)


def one_less(folder: Path, name: str) -> None:
    (folder / name / "3.png").unlink()


def another(folder: Path, name: str) -> None:
    write_image(folder / name / "3.png", seed=99)


def two_exchanged(folder: Path, name: str) -> None:
    a, b = folder / name / "1.png", folder / name / "2.png"
    a.rename(folder / "aside")
    b.rename(a)
    (folder / "aside").rename(b)


def another_folder(folder: Path, name: str) -> None:
    write_image(folder / "zz" / "0.png")


def another_name(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "0")


CHANGES = [one_more, one_less, another, two_exchanged]
ALWAYS = [("fqgan", two_exchanged), ("fqgan", another_folder), ("ugatit", another)]
CASES = [("fqgan", change) for change in [*CHANGES, another_folder, another_name]]
CASES += [("ugatit", change) for change in CHANGES]
MARKED = [pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("trainer", "change"), MARKED)
def test_changed_images_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trainer: str,
    change: Callable[[Path, str], None],
) -> None:
    options, names = (FQGAN, ("a", "b")) if trainer == "fqgan" else (SMALL, ("trainA", "trainB"))
    write(tmp_path / "data", *names)
    run = str(tmp_path / "run")
    assert main(["train", trainer, "--data", str(tmp_path / "data"), *options, "--out", run]) == 0
    assert main(["train", trainer, "--resume", run, "--steps", "3"]) == 0
    change(tmp_path / "data", names[1])
    capsys.readouterr()
    assert main(["train", trainer, "--resume", run, "--steps", "4"]) == 1
    assert "are not those the run was started with" in capsys.readouterr().err


def test_a_part_of_many_images_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "SAMPLED", 3)
    images = torch.rand(9, 1, 2, 2)
    before = fingerprint([images], torch.arange(9))
    seen = []
    for i in range(9):
        changed = images.clone()
        changed[i] += 1
        seen.append(fingerprint([changed], torch.arange(9)) != before)
    assert seen == [i in (0, 4, 8) for i in range(9)]
    assert fingerprint([images], torch.arange(9).flip(0)) != before


def test_translators_are_measured_on_the_images_they_were_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", str(tmp_path / "run")
    write(data, "trainA", "trainB", "testA", "testB")
    assert main(["train", "ugatit", "--data", str(data), *SMALL, "--out", run]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["measured_on"]
    assert {name: (one["file"], one["items"]) for name, one in found.items()} == {
        name: (str(data / name), 6) for name in ("testA", "testB")
    }
    line = f"testB: {data / 'testB'} (6 items, hash {found['testB']['hash']})"
    assert line in capsys.readouterr().out
    assert main(["evaluate", run]) == 0
    assert line in capsys.readouterr().out
    another(data, "testB")
    for words in (["train", "ugatit", "--resume", run, "--steps", "3"], ["evaluate", run]):
        assert main(words) == 1
        assert f"{data / 'testB'}, or what belongs to its items, is not what" in capsys.readouterr().err


def test_a_gan_is_measured_on_the_images_it_was_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", str(tmp_path / "run")
    write(data, "a", "b")
    assert main(["train", "fqgan", "--data", str(data), *FQGAN, "--out", run]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["measured_on"]["images"]
    assert (found["file"], found["items"]) == (str(data), 12)
    capsys.readouterr()
    assert main(["evaluate", run]) == 0
    assert f"measured on {data} (12 items, hash {found['hash']})" in capsys.readouterr().out
    another(data, "b")
    for words in (["evaluate", run], ["evaluate", run, "--truncations", "0.5"]):
        assert main(words) == 1
        assert f"{data}, or what belongs to its items, is not what" in capsys.readouterr().err
    assert main(["sample", run]) == 0  # nothing is measured
