"""Two domains in folders and archives: the same images from either, and a sentence where there are none."""

from pathlib import Path

import pytest
import torch

from fq_toolkit.fqgan.data.datasets import load_dataset
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset, load_unpaired
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.data.image_data import write_image, write_zip

COUNTS = {"trainA": 3, "trainB": 4, "testA": 2, "testB": 1}


def write_domains(folder: Path, below: str = "") -> Path:
    for seed, (part, count) in enumerate(COUNTS.items()):
        for i in range(count):
            deeper = below and f"{below}{i % 2}"
            write_image(folder / part / deeper / f"{i}.png", (20, 18), seed=10 * seed + i)
    return folder


def assert_same(a: UnpairedDataset, b: UnpairedDataset) -> None:
    for one, other in zip(a[1:5], b[1:5], strict=True):
        assert torch.equal(one[:], other[:])  # type: ignore[index]


@pytest.mark.parametrize("inside", ["", "selfie2anime/", "a/b/"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_is_read_as_its_folder(tmp_path: Path, inside: str, nested: bool) -> None:
    folder = write_domains(tmp_path / "d", "part" if nested else "")
    packed = load_unpaired(str(write_zip(folder, tmp_path / "d.zip", inside)), size=16, nested=nested)
    assert_same(packed, load_unpaired(str(folder), size=16, nested=nested))
    assert packed.found.startswith("unpaired zip archive: trainA 3, trainB 4, testA 2, testB 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d.zip"]  # nothing is unpacked


def test_an_archive_for_each_part(tmp_path: Path) -> None:
    folder = write_domains(tmp_path / "d")
    (tmp_path / "packed").mkdir()
    for part in COUNTS:
        write_zip(folder / part, tmp_path / "packed" / f"{part}.zip")
    assert_same(load_unpaired(str(tmp_path / "packed"), size=16), load_unpaired(str(folder), size=16))


def test_nested_takes_what_lies_deeper(tmp_path: Path) -> None:
    flat, deep = write_domains(tmp_path / "flat"), write_domains(tmp_path / "deep", "shard")
    one, other = (load_unpaired(str(path), size=16, nested=True) for path in (flat, deep))
    for a, b in zip(one[1:5], other[1:5], strict=True):  # sorted by folder: the same images, in another order
        rows = [sorted(image.flatten().tolist() for image in images[:]) for images in (a, b)]  # type: ignore[index]
        assert rows[0] == rows[1]


def test_what_lies_deeper_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_domains(tmp_path / "d")
    write_image(folder / "trainA" / "more" / "x.png")
    (folder / "trainB" / "notes.txt").write_text("x")
    assert len(load_unpaired(str(folder), size=16).train_a) == 3
    assert "images in folders of trainA are not used; --nested takes them" in caplog.text
    assert "files that are not read as images: .txt 1" in caplog.text
    with pytest.raises(ConfigError, match=r"expected trainA and trainB with images in them.*--nested"):
        load_unpaired(str(write_domains(tmp_path / "deep", "shard")), size=16)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_damaged_pictures_are_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = write_domains(tmp_path / "d")
    (folder / "trainB" / "bad.png").write_bytes(b"x")
    source = str(folder if kind == "folder" else write_zip(folder, tmp_path / "d.zip"))
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be read.*--skip-damaged:\n.*trainB/bad\.png"):
        load_unpaired(source, size=16)
    data = load_unpaired(source, size=16, skip_damaged=True)
    assert (len(data.train_b), data.found) == (4, data.found)
    assert "trainB 4 (1 damaged and skipped)" in data.found
    assert "1 of 5 images cannot be read and are skipped:\n" in caplog.text


def test_other_archives_are_refused(tmp_path: Path) -> None:
    folder = write_domains(tmp_path / "d")
    path = tmp_path / "d.zip"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot read"):
        load_unpaired(str(path), size=16)
    for file in (folder / "trainB").iterdir():
        file.unlink()
    write_zip(folder, path)
    with pytest.raises(
        ConfigError, match=r"has the folders testA, testB, trainA; expected trainA and trainB"
    ):
        load_unpaired(str(path), size=16)
    with pytest.raises(ConfigError, match=r"no folder or zip archive"):
        load_unpaired(str(folder / "trainA" / "0.png"), size=16)
    with pytest.raises(ConfigError, match="cannot be used"):
        load_unpaired("x" * 5000, size=16)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_two_domains_are_no_classes(tmp_path: Path, kind: str) -> None:
    folder = write_domains(tmp_path / "d")
    source = folder if kind == "folder" else write_zip(folder, tmp_path / "d.zip")
    with pytest.raises(ConfigError, match=f"they are for: fq-toolkit train ugatit --data {source}"):
        load_dataset(str(source))
    assert len(load_dataset(str(source), size=8, nested=True).images) == sum(COUNTS.values())
