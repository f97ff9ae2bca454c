"""Pictures of a user's through a trained generator: files, folders, archives, damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fq_toolkit.fqgan.ugatit import commands
from fq_toolkit.fqgan.ugatit.runs import load_translators
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER
from fq_toolkit.fqgan.ugatit.translate import translate_folder
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import train
from tests.fqgan.data.image_data import write_image, write_zip
from tests.fqgan.ugatit.small import TINY

pytestmark = pytest.mark.usefixtures("small_and_plain")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_and_plain: None) -> Path:
    return train(UGATIT_TRAINER, TINY, out=tmp_path_factory.mktemp("runs") / "run").run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with two pictures, and two of the same names in folders of it."""
    folder = tmp_path / "in"
    for i, name in enumerate(("0.png", "1.png", "x/0.png", "y/z/0.png")):
        write_image(folder / name, (16 + 4 * i, 20), "RGB" if i % 2 else "L", seed=i)
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_translated(finished: Path, tmp_path: Path) -> None:
    run = load_translators(finished)
    for i, (size, mode) in enumerate([((16, 16), "L"), ((40, 20), "RGB")]):
        write_image(tmp_path / "in" / f"{i}.png", size, mode, seed=i)
    assert translate_folder(run, tmp_path / "in", tmp_path / "out", to="B") == 2
    assert translate_folder(run, tmp_path / "in" / "0.png", tmp_path / "back", to="A") == 1
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"0.png": (16, 16), "1.png": (16, 16)}
    there, back = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("out", "back"))
    assert not np.array_equal(there, back)
    mine = written(tmp_path / "in")
    for source in (tmp_path / "in", tmp_path / "in" / "0.png"):
        with pytest.raises(ConfigError, match="translations would replace them; give another --out"):
            translate_folder(run, source, tmp_path / "out" / ".." / "in", to="B")
    assert mine == written(tmp_path / "in")
    write_image(tmp_path / "in" / "1.jpg")
    with pytest.raises(ConfigError, match=r"several images that would become 1\.png"):
        translate_folder(run, tmp_path / "in", tmp_path / "out", to="B")
    with pytest.raises(ConfigError, match="does not exist"):
        translate_folder(run, tmp_path / "absent", tmp_path / "out", to="B")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes\.txt holds no images"):
        translate_folder(run, tmp_path / "notes.txt", tmp_path / "out", to="B")


@pytest.mark.parametrize("inside", ["", "photos/"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_is_translated_as_its_folder(
    finished: Path, pictures: Path, tmp_path: Path, inside: str, nested: bool
) -> None:
    run = load_translators(finished)
    packed = write_zip(pictures, tmp_path / "in.zip", inside)
    counts = [
        translate_folder(run, source, tmp_path / out, to="B", nested=nested)
        for source, out in ((pictures, "a"), (packed, "b"))
    ]
    assert counts == ([4, 4] if nested else [2, 2])
    assert written(tmp_path / "a") == written(tmp_path / "b")
    names = {"0.png", "1.png"} | ({"x/0.png", "y/z/0.png"} if nested else set())
    assert written(tmp_path / "a").keys() == names


def test_an_archive_of_one_folder_of_pictures(finished: Path, tmp_path: Path) -> None:
    for i in range(2):
        write_image(tmp_path / "in" / f"{i}.png", seed=i)
    packed = write_zip(tmp_path / "in", tmp_path / "in.zip", "photos/")
    assert translate_folder(load_translators(finished), packed, tmp_path / "out", to="A") == 2
    assert written(tmp_path / "out").keys() == {"0.png", "1.png"}


def test_what_is_not_translated_is_told(
    finished: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "notes.txt").write_text("x")
    translate_folder(load_translators(finished), pictures, tmp_path / "out", to="B")
    assert "files that are not read as images: .txt 1" in caplog.text
    assert "the folders in it are not looked into (x, y); --nested takes the images in them" in caplog.text


def test_translations_replace_no_picture_of_a_nested_folder(finished: Path, pictures: Path) -> None:
    before = written(pictures)
    for out in (pictures, pictures / "x", pictures / "y" / "z"):
        with pytest.raises(ConfigError, match="translations would replace them; give another --out"):
            translate_folder(load_translators(finished), pictures, out, to="B", nested=True)
    assert before == written(pictures)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_damaged_pictures_are_skipped_counted_and_named(
    finished: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = tmp_path / "good"
    translate_folder(load_translators(finished), pictures / "0.png", good, to="B")
    (pictures / "00.png").write_bytes(b"x")
    half = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(half[: len(half) // 2])
    source = pictures if kind == "folder" else write_zip(pictures, tmp_path / "in.zip")
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be read.*give --skip-damaged:\n.*00\.png"):
        commands.translate_command(finished, [str(source), "--out", str(out)])
    assert not out.exists()
    assert commands.translate_command(finished, [str(source), "--skip-damaged", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"1 image(s) in {out}\n"
    assert "2 of 3 images cannot be read and are skipped:\n" in caplog.text
    assert "00.png" in caplog.text
    assert written(out) == {"0.png": written(good)["0.png"]}  # under its own name


def test_only_damaged_pictures(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be read"):
        translate_folder(
            load_translators(finished), tmp_path / "in", tmp_path / "o", to="B", skip_damaged=True
        )
