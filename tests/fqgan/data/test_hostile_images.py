"""Files that cost more than they are, or are not what they say: one sentence, little memory, no program."""

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fq_toolkit.fqgan.data import file_bounds, image_files
from fq_toolkit.fqgan.data.datasets import load_dataset
from fq_toolkit.fqgan.data.pixels import resize_and_crop
from fq_toolkit.fqgan.data.plain_pickles import read_pickle
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.data.bounded import run_bounded
from tests.fqgan.data.image_data import pixels, write_cifar_python, write_idx, write_image


def png(width: int, height: int, *, gray: bool = True) -> bytes:
    """Return a PNG of zeros that is small whatever its size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" * (1 + width * (1 if gray else 3))
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if gray else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# --- a name decides what is tried


def test_a_picture_of_another_format_is_not_opened(tmp_path: Path) -> None:
    for name, kind in (("a.png", "JPEG"), ("b.jpg", "PNG"), ("c.webp", "BMP"), ("d.gif", "TIFF")):
        Image.fromarray(pixels(0, 8, 8, 3)).save(tmp_path / name, format=kind)
        with pytest.raises(
            ConfigError, match=rf"{name}: UnidentifiedImageError: its ending .*{kind}; rename"
        ):
            load_dataset(str(tmp_path))
        (tmp_path / name).unlink()


def test_no_program_is_started(tmp_path: Path) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "images"
    tools.mkdir()
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tools / name).chmod(0o755)
    buffer = io.BytesIO()
    Image.fromarray(pixels(0, 8, 8, 3)).save(buffer, format="EPS")
    for ending in image_files.FORMATS:
        (folder / f"e{ending}").write_bytes(buffer.getvalue())
    found = run_bounded(f"load_dataset({str(folder)!r})", path=f"{tools}:{os.environ['PATH']}")
    assert found.code == 0, found.output
    assert "ConfigError" in found.output
    assert not (tmp_path / "started").exists()


def test_more_endings_are_read(tmp_path: Path) -> None:
    rgb = np.full((8, 8, 3), 90, np.uint8)
    names = ["a.jfif", "b.tga", "c.jpe", "d.pnm", "e.avif", "f.jp2", "g.j2k"]
    readable = [name for name in names if image_files.is_image(Path(name))]
    for name in readable:
        Image.fromarray(rgb).save(tmp_path / name, format=image_files.FORMATS[name[1:]])
    assert len(readable) >= 4
    images = load_dataset(str(tmp_path)).images
    assert len(images) == len(readable)
    assert float((images[:] - (90 / 127.5 - 1)).abs().max()) < 0.05


def test_what_is_not_read_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.svg", "e.jp2", "README"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(image_files, "is_image", lambda path: path.suffix == ".png")  # no JPEG 2000 here
    monkeypatch.setattr("fq_toolkit.fqgan.data.image_trees.is_image", lambda path: path.suffix == ".png")
    assert len(load_dataset(str(tmp_path)).images) == 1
    assert ".heic 2, .jp2 1, .svg 1, without ending 1" in caplog.text


# --- bounds before memory


def test_the_middle_of_a_long_picture_is_scaled_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, (size, wanted) in enumerate(
        [((97, 31), 16), ((31, 97), 40), ((640, 480), 64), ((7, 5), 8), ((33, 33), 8)]
    ):
        path = tmp_path / f"{i}.png"
        picture = Image.fromarray(write_image(path, size, seed=i))
        scale = wanted / min(size)
        wide, high = (max(wanted, round(side * scale)) for side in size)
        left, top = (wide - wanted) // 2, (high - wanted) // 2
        whole = picture.resize((wide, high), Image.Resampling.BILINEAR)
        expected = np.array(whole.crop((left, top, left + wanted, top + wanted)))
        found = image_files.read_image(path, channels=3, size=wanted)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected), (size, wanted)
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "_WHOLE", 0)
            found = image_files.read_image(path, channels=3, size=wanted)
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


BOMBS: dict[str, tuple[Callable[[Path], None], int]] = {}


def bomb(size: int = 0) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(write: Callable[[Path], None]) -> Callable[[Path], None]:
        BOMBS[write.__name__] = (write, size)
        return write

    return keep


@bomb(128)
def long_pngs(folder: Path) -> None:
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png(60000, 1) if i % 2 else png(1, 60000))


@bomb(16)
def wide_pngs(folder: Path) -> None:
    content = png(12000, 12000)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(content)


@bomb(16)
def large_pngs(folder: Path) -> None:
    content = png(7000, 7000)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(content)


@bomb()
def sparse_png(folder: Path) -> None:
    with (folder / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"tEXt")
        file.truncate(2**33)


def write_npz(path: Path, header: bytes, zeros: int, name: str = "x.npy") -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(0, zeros, 2**24):
            file.write(bytes(min(zeros, 2**24)))


@bomb()
def npz_of_zeros(folder: Path) -> None:
    shape = (2**11, 512, 512)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    write_npz(folder / "a.npz", header, 2**29)


@bomb()
def npz_that_announces(folder: Path) -> None:
    write_npz(
        folder / "a.npz", b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }", 100
    )


@bomb()
def idx_that_announces(folder: Path) -> None:
    head = struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)
    (folder / "train-images-idx3-ubyte").write_bytes(head + b"\0" * 100)


@bomb()
def idx_of_zeros(folder: Path) -> None:
    head = struct.pack(">HBB3I", 0, 8, 3, 2**11, 512, 512)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(2**5):
            file.write(bytes(2**24))


@bomb()
def idx_with_a_long_end(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(1, np.uint8))
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 1, 8, 8))
        for _ in range(2**5):
            file.write(bytes(2**24))


@bomb(512)
def long_array(folder: Path) -> None:
    np.savez(folder / "a.npz", x=np.zeros((4, 60000, 1), np.uint8))


def pickled(program: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "data_batch_1").write_bytes(program)

    return write


shared = [1, 2]
for _ in range(30):
    shared = [shared, shared]
pair: object = (1, 2)
for _ in range(40):
    pair = (pair, pair)
text = "a" * 10**6
PICKLES = {
    "shared lists": pickle.dumps({b"data": 1, b"labels": shared}, protocol=2),
    "shared tuples": pickle.dumps([pair], protocol=2)[:-2] + b"0}h\x01K\x01s.",
    "shared tuples as a key": b"\x80\x02}" + pickle.dumps(pair, protocol=2)[2:-1] + b"K\x01s.",
    "memory index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "memory index in text": b"}p2147483647\n.",
    "memory indices": b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", 2**i) for i in range(8, 31)) + b".",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b"a.",
    "long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    "number of many digits": b"I" + b"9" * 10**6 + b"\n.",
    "colliding keys": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"K\0" for i in range(1, 100_000))
        + b"u."
    ),
    "bytes made again and again": (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text.encode()
        + b"q\x01X\x06\0\0\0latin1q\x02"
        + b"(" + b"h\x00h\x01h\x02\x86R" * 10_000 + b"l."
    ),
    "itself": b"\x80\x02]q\x00h\x00a.",
    "deep": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
}  # fmt: skip
for _name, _program in PICKLES.items():
    BOMBS[f"pickle: {_name}"] = (pickled(_program), 0)


def test_a_bomb_costs_little_and_says_one_sentence(tmp_path: Path) -> None:
    for name, (write, _) in BOMBS.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    sizes = {name: size for name, (_, size) in BOMBS.items()}
    found = run_bounded(
        f"""
for name, size in {sizes!r}.items():
    try:
        print(name, load_dataset({str(tmp_path)!r} + "/" + name, size=size).found)
    except ConfigError as error:
        print(name, "ConfigError", error)
"""
    )
    assert found.code == 0, found.output[-2000:]
    for name in BOMBS:
        read = name in ("long_pngs", "large_pngs")
        assert (f"{name} ConfigError" in found.output) != read, found.output
    assert found.peak < 900 * 2**20, f"{found.peak / 2**20:.0f} MiB"


def test_ordinary_pickles_are_read_in_every_protocol(tmp_path: Path) -> None:
    images = pixels(0, 4, 3072)
    for protocol in range(5):
        batch = {
            "data": images,
            "labels": [1, 2, 3, 4],
            "filenames": ["a", "b", "a", "b"],
            "batch_label": "x",
        }
        (tmp_path / "batch").write_bytes(pickle.dumps(batch, protocol=protocol))
        found = read_pickle(tmp_path / "batch")
        assert np.array_equal(found[b"data"].to_numpy(), images), protocol
        assert found[b"labels"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "labels", [[True, False], [1.0, 2.0], [[1], [2]], (1, 2), "12", [1, None], None, {1: 2}]
)
def test_labels_of_a_batch_are_a_list_of_numbers(tmp_path: Path, labels: object) -> None:
    write_cifar_python(tmp_path, batches=1)
    batch = {b"data": pixels(0, 2, 3072), b"labels": labels}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ConfigError, match=r"no list of numbers|is refused"):
        load_dataset(str(tmp_path))


def test_pipes_do_not_block(tmp_path: Path) -> None:
    names = ["a.png", "a.npz", "train-images-idx3-ubyte", "data_batch_1", "dataset.json", "a.zip", "c/b.jpg"]
    targets = []
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        (folder / name).parent.mkdir(parents=True)
        if name == "dataset.json":
            write_image(folder / "a.png")
        os.mkfifo(folder / name)
        targets += [str(folder), str(folder / name)]
    found = run_bounded(
        f"""
for target in {targets!r}:
    try:
        load_dataset(target, size=8)
    except ConfigError as error:
        print("refused", error)
"""
    )
    assert found.code == 0, found.output
    assert found.output.count("refused") == len(targets)


def test_names_that_are_no_files_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(ConfigError, match=r"lost\.png: .*cannot read .*No such file"):
        load_dataset(str(tmp_path))
    (tmp_path / "lost.png").unlink()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"zero\.png.* no regular file"):
        load_dataset(str(tmp_path))
    for name in ("a" * 5000, "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(ConfigError):
            load_dataset(name)


def test_what_this_machine_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(0, 10, 100, 100))
    write_idx(tmp_path / "images-idx3-ubyte", pixels(0, 10, 100, 100))
    write_idx(tmp_path / "labels-idx1-ubyte", np.zeros(10, np.uint8))
    monkeypatch.setattr(file_bounds, "machine_memory", lambda: 150_000)
    for name in ("a.npz", "images-idx3-ubyte"):
        with pytest.raises(ConfigError, match=r"100,000 bytes, and half of this machine's memory is 75,000"):
            load_dataset(str(tmp_path / name))


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", npy(np.zeros((2, 8, 8), "M8[s]")), "array of datetime64"),
        ("x.npy", npy(np.zeros((2, 8, 8), complex)), "array of complex128"),
        ("x.npy", npy(np.zeros((2, 8, 8), "U3")), "array of <U3"),
        ("x.npy", npy(np.zeros((2, 8, 8), "V4")), "array of"),
        ("x.npy", npy(np.zeros((2, 8, 8), [("a", "u1")])), "array of"),
        ("x.npy", npy(np.zeros((2, 8, 8), bool)), "array of bool"),
        ("x.npy", npy(np.zeros((2, 8, 8), np.uint8))[:-1], "should hold uint8"),
        ("x.npy", npy(np.zeros((2, 8, 8), np.uint8)) + b"1", "should hold uint8"),
        ("x.npy", b"", "cannot read"),
        ("x.npy", b"no array at all", "cannot read"),
        ("x", npy(np.zeros((2, 8, 8), np.uint8)), "has the arrays none and other entries"),
        ("x.npy", npy(np.zeros((2, 8, 8), np.uint8)).replace(b"(2, 8, 8)", b"(-2,8,-8)"), "should hold"),
    ],
)
def test_npz_entries_of_other_content(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(ConfigError, match=message):
        load_dataset(str(tmp_path / "a.npz"))


def test_labels_beyond_64_bits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(ConfigError, match="label 18446744073709551615"):
        load_dataset(str(tmp_path / "a.npz"))


def test_arrays_that_are_cropped_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.from_numpy(pixels(0, 9, 3, 12, 30))
    whole = resize_and_crop(images, 8)
    monkeypatch.setattr("fq_toolkit.fqgan.data.pixels._MOST", 400)
    assert torch.equal(resize_and_crop(images, 8), whole)
    assert resize_and_crop(images, 8, fit="resize").shape == (9, 3, 8, 8)
