"""Folders of other toolkits, zip archives, nested folders, damaged files, pictures that are not square."""

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fq_toolkit.fqgan.data import image_files
from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset
from fq_toolkit.fqgan.data.unpaired import load_unpaired
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.data.image_data import write_image, write_zip


def shards(folder: Path, labels: Any = "numbers") -> list[int]:
    """Write the layout of StyleGAN's dataset tool: shards, and labels that have nothing to do with them."""
    names = [f"{shard:05d}/img{i:08d}.png" for shard in range(2) for i in range(3 * shard, 3 * shard + 3)]
    numbers = [2, 0, 1, 1, 2, 0]
    for i, name in enumerate(names):
        write_image(folder / name, seed=i)
    if labels == "numbers":
        labels = [list(pair) for pair in zip(names, numbers, strict=True)][::-1]  # in whatever order
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return numbers


def same(a: ImageDataset, b: ImageDataset) -> bool:
    return torch.equal(a.images[:], b.images[:]) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("inside", ["", "wrapped/", "wrapped/twice/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_labels_of_a_dataset_json_in_folder_and_archive(tmp_path: Path, inside: str, method: int) -> None:
    numbers = shards(tmp_path / "in")
    data = load_dataset(str(tmp_path / "in"))
    assert data.labels.tolist() == numbers
    assert (data.num_classes, data.class_names, data.extractor) == (3, (), "data-cnn")
    assert data.found == "image folder with labels in dataset.json: 6 images 3x8x8, 3 classes"
    before = sorted(tmp_path.rglob("*"))
    path = write_zip(tmp_path / "in", tmp_path / "a.zip", inside, method)
    archive = load_dataset(str(path))
    assert same(archive, data)
    assert archive.found == "zip archive with labels in dataset.json: 6 images 3x8x8, 3 classes"
    assert sorted({*tmp_path.rglob("*")} - {path}) == before  # nothing was unpacked
    loose = load_dataset(str(path), conditional=False)
    assert (loose.num_classes, loose.annotations.tolist()) == (1, numbers)  # type: ignore[union-attr]


def test_archives_of_class_folders_and_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        write_image(tmp_path / "in" / name, seed=i)
    folder = load_dataset(str(tmp_path / "in"))
    path = write_zip(tmp_path / "in", tmp_path / "a.zip", "pets/")
    archive = load_dataset(str(path))
    assert same(archive, folder)
    assert archive.class_names == ("cat", "dog")
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    assert same(load_dataset(str(path)), folder)
    flat = write_zip(tmp_path / "in" / "cat", tmp_path / "b.zip")
    assert load_dataset(str(flat)).found == "zip archive without classes: 2 images 3x8x8, one class"


@pytest.mark.parametrize("labels", [None, "none at all"])
def test_pictures_whose_labels_are_not_there(tmp_path: Path, labels: Any) -> None:
    shards(tmp_path, labels=None)
    if labels is None:
        assert load_dataset(str(tmp_path)).found == "image folder without classes: 6 images 3x8x8, one class"
    else:
        (tmp_path / "dataset.json").unlink()
        found = load_dataset(str(tmp_path), nested=True)
        assert (len(found.images), found.num_classes) == (6, 1)


NAMES = [f"{shard:05d}/img{i:08d}.png" for shard in range(2) for i in range(3 * shard, 3 * shard + 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "has no labels; expected"),
        ('{"images": []}', "has no labels; expected"),
        ('{"labels": 3}', "labels are int"),
        ('{"labels": [["a.png", 1, 2]]}', "has the record"),
        ('{"labels": [[1, 1]]}', "has the record"),
        ('{"labels": {"a.png": 1}}', "labels are dict"),
        ("{", "cannot read"),
        ("[" * 100_000, "cannot read"),
        (json.dumps({"labels": [[name, 0] for name in NAMES[1:]]}), "no label for 1 of 6 images, such as"),
        (
            json.dumps({"labels": [[name, 0] for name in [*NAMES, "../x.png"]]}),
            "1 image.s. that are not there",
        ),
        (json.dumps({"labels": [[name, 0] for name in [*NAMES, NAMES[0]]]}), "two labels for"),
        *(
            (
                json.dumps({"labels": [[name, label] for name in NAMES]}),
                "expected a number, from 0, of a class",
            )
            for label in (-1, 1.5, 2.0, True, None, "3", [0.0, 1.0], 2**40)
        ),
        (json.dumps({"labels": [[name, 5000] for name in NAMES]}), "has the label 5000 but 6 images"),
    ],
)
def test_a_dataset_json_that_is_not_understood(tmp_path: Path, content: str, message: str) -> None:
    shards(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_dataset(str(tmp_path))
    assert len(load_dataset(str(tmp_path), nested=True).images) == 6


def test_classes_without_images_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards(tmp_path, labels=[[name, 4 * (i % 2)] for i, name in enumerate(NAMES)])
    assert load_dataset(str(tmp_path)).num_classes == 5
    assert "labels go from 0 to 4, but only 2 of them have images" in caplog.text


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "a/../../x.png", "a\\x.png", "C:x.png", "a//x.png", "a" * 2000]
)
def test_names_that_lead_outside_an_archive(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"x")
    with pytest.raises(ConfigError, match="leads outside or nowhere"):
        load_dataset(str(tmp_path / "a.zip"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def test_an_entry_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"x")
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 28], raw[entry + 32] = 0, 1  # no name, and its letter is a comment
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="an entry '', whose name leads outside or nowhere"):
        load_dataset(str(path))


def test_archives_with_links_passwords_and_names_twice(tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    write_image(picture)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ConfigError, match="has a link"):
        load_dataset(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(picture, "x.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(picture, "x.png")
    with pytest.raises(ConfigError, match="two files called"):
        load_dataset(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(picture, "x.png")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="needs a password"):
        load_dataset(str(path))
    path.write_bytes(bytes(raw)[:-30])
    with pytest.raises(ConfigError, match="cannot read"):
        load_dataset(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", b"x")
    with pytest.raises(ConfigError, match="holds no images"):
        load_dataset(str(path))


def test_damaged_entries_of_an_archive_are_named(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", seed=i)
    path = write_zip(tmp_path / "in", tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 20] ^= 255  # the checksum of the entry tells
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be read.*\n.*a\.zip/0\.png: .*damaged"):
        load_dataset(str(path))
    assert len(load_dataset(str(path), skip_damaged=True).images) == 2


@pytest.mark.parametrize(
    ("names", "step"),
    [
        (("00000", "00001", "00002"), 1),
        (("00000", "01000", "02000"), 1000),
        (("7", "8"), 1),
        (("0", "2", "4"), 0),
        (("0", "1", "x"), 0),
        (("5",), 0),
    ],
)
def test_folders_that_look_like_shards(
    tmp_path: Path, names: tuple[str, ...], step: int, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        write_image(tmp_path / name / "a.png")
    load_dataset(str(tmp_path))
    assert (f"numbers in steps of {step}" in caplog.text) == bool(step)
    assert ("--nested" in caplog.text) == bool(step)


def test_nested_folders_without_classes(tmp_path: Path) -> None:
    for i, name in enumerate(("b/x/10.png", "b/x/9.png", "a.png", ".hidden/b.png", "c/d/e/f.png")):
        write_image(tmp_path / name, seed=i)
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    data = load_dataset(str(tmp_path), nested=True)
    assert data.found == "image folder without classes: 4 images 3x8x8, one class"
    expected = [
        image_files.read_image(tmp_path / name, channels=3)
        for name in ("a.png", "b/x/9.png", "b/x/10.png", "c/d/e/f.png")
    ]
    assert np.array_equal(((data.images[:] + 1) * 127.5).round().numpy(), torch.stack(expected).numpy())


def test_images_that_are_not_square(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    halves = np.zeros((8, 24, 3), np.uint8)
    halves[:, 12:] = 255
    Image.fromarray(halves).save(tmp_path / "a.png")
    write_image(tmp_path / "b.png", (8, 8))
    np.savez(tmp_path / "c.npz", x=halves[None])
    arrays = str(tmp_path / "c.npz")
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    folder = str(tmp_path / "in")
    with caplog.at_level(logging.WARNING):
        auto = load_dataset(folder, size=8)
    assert "1 of 2 images are not square" in caplog.text
    caplog.clear()
    crop, squeezed = load_dataset(folder, size=8, fit="crop"), load_dataset(folder, size=8, fit="resize")
    assert not caplog.records
    assert torch.equal(auto.images[:], crop.images[:])
    assert not torch.equal(crop.images[0], squeezed.images[0])
    assert torch.equal(crop.images[1], squeezed.images[1])
    for data in (squeezed, load_dataset(arrays, size=8, fit="resize")):
        assert float(data.images[0][:, :, :3].max()) == -1
        assert float(data.images[0][:, :, 5:].min()) == 1
    with pytest.raises(ConfigError, match="--resize"):
        load_dataset(folder)


def test_damaged_images_are_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")):
        write_image(tmp_path / name, (32, 32), seed=i)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[: len(whole) // 2])  # its head is intact
    (tmp_path / "b" / "1.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="--skip-damaged"):
        load_dataset(str(tmp_path))
    expected = [
        image_files.read_image(tmp_path / name, channels=3) for name in ("a/1.png", "b/0.png", "b/2.png")
    ]
    for limit in (image_files.MEMORY_LIMIT, 0):
        caplog.clear()
        monkeypatch.setattr(image_files, "MEMORY_LIMIT", limit)
        data = load_dataset(str(tmp_path), skip_damaged=True)
        assert np.array_equal(((data.images[:] + 1) * 127.5).round().numpy(), torch.stack(expected).numpy())
        assert data.labels.tolist() == [0, 1, 1]
        assert "2 of 5 images cannot be read and are skipped" in caplog.text
        assert os.path.join("a", "0.png") in caplog.text
        assert os.path.join("b", "1.png") in caplog.text
        assert "2 damaged and skipped" in data.found
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"5 image\(s\) cannot be read"):
        load_dataset(str(tmp_path), skip_damaged=True)


def test_unpaired_folders_take_the_same_options(tmp_path: Path) -> None:
    for part in ("trainA", "trainB", "testA", "testB"):
        for i in range(2):
            write_image(tmp_path / part / f"{i}.png", (20, 18), seed=i)
    (tmp_path / "trainB" / "bad.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"bad\.png"):
        load_unpaired(str(tmp_path), size=16)
    found = load_unpaired(str(tmp_path), size=16, fit="resize", skip_damaged=True)
    assert [len(part) for part in found[1:5]] == [2, 2, 2, 2]  # type: ignore[arg-type]


def test_options_that_exclude_each_other() -> None:
    for make in (FQGANConfig, UGATITConfig):
        with pytest.raises(ConfigError, match="give one"):
            make(crop=True, resize=True, image_size=256)
        assert make(resize=True, image_size=256).reading()["fit"] == "resize"
    with pytest.raises(ConfigError, match="give --image-size"):
        FQGANConfig(resize=True)
    assert FQGANConfig().reading() == {
        "size": 0,
        "conditional": True,
        "fit": "auto",
        "skip_damaged": False,
        "nested": False,
    }
