"""Damaged files of every kind that the image readers know: they are read or refused, within bounds."""

import pytest

from tests.fqgan.data.bounded import run_bounded

FUZZ = """
import io, json, pickle, random, tempfile, warnings, zipfile
from pathlib import Path
import numpy as np
from PIL import Image
from tests.fqgan.data.image_data import pixels, write_cifar_python, write_idx
warnings.simplefilter("ignore")

def picture(ending, kind):
    def write(folder):
        Image.fromarray(pixels(0, 16, 16, 3)).save(folder / f"a{ending}", format=kind)
        return folder / f"a{ending}"
    return write

def idx(ending):
    def write(folder):
        write_idx(folder / f"labels-idx1-ubyte{ending}", np.arange(4, dtype=np.uint8))
        write_idx(folder / f"images-idx3-ubyte{ending}", pixels(0, 4, 8, 8))
        return folder / f"images-idx3-ubyte{ending}"
    return write

def npz(save):
    def write(folder):
        save(folder / "a.npz", x=pixels(0, 4, 8, 8), y=np.arange(4))
        return folder / "a.npz"
    return write

def cifar(folder):
    write_cifar_python(folder, batches=1, count=1)
    return folder / "data_batch_1"

def binary(folder):
    (folder / "data_batch_1.bin").write_bytes(bytes(2 * 3073))
    return folder / "data_batch_1.bin"

def labels(folder):
    (folder / "s").mkdir(exist_ok=True)
    Image.fromarray(pixels(0, 8, 8, 3)).save(folder / "s" / "a.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [["s/a.png", 0]]}))
    return folder / "dataset.json"

def archive(folder):
    buffer = io.BytesIO()
    Image.fromarray(pixels(0, 8, 8, 3)).save(buffer, format="PNG")
    with zipfile.ZipFile(folder / "a.zip", "w") as made:
        made.writestr("s/a.png", buffer.getvalue())
        made.writestr("dataset.json", json.dumps({"labels": [["s/a.png", 0]]}))
    return folder / "a.zip"

READERS = {
    "idx": idx(""), "idx.gz": idx(".gz"), "npz": npz(np.savez), "packed npz": npz(np.savez_compressed),
    "cifar": cifar, "binary": binary, "labels": labels, "zip": archive,
    "png": picture(".png", "PNG"), "jpeg": picture(".jpg", "JPEG"), "webp": picture(".webp", "WEBP"),
    "gif": picture(".gif", "GIF"), "tiff": picture(".tif", "TIFF"), "bmp": picture(".bmp", "BMP"),
    "ppm": picture(".ppm", "PPM"), "tga": picture(".tga", "TGA"),
}

def mutate(raw, draw):
    raw = bytearray(raw)
    for _ in range(draw.choice([1, 1, 2, 5])):
        kind, at = draw.randrange(5), draw.randrange(len(raw) or 1)
        if draw.random() < 0.6:
            at = min(at, draw.randrange(200))  # heads decide most
        if kind == 0:
            raw[at:at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            raw[at:at + 4] = draw.choice([b"\\xff" * 4, b"\\0" * 4, b"\\x7f" + b"\\xff" * 3])
        elif kind == 2:
            del raw[at:at + draw.randrange(1, 40)]
        elif kind == 3:
            raw[at:at] = draw.randbytes(draw.randrange(1, 20))
        else:
            del raw[at:]
    return bytes(raw)

def fuzz(count):
    read = 0
    for name, write in READERS.items():
        draw = random.Random(name)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path = write(folder)
            whole = path.read_bytes()
            target = path if path.suffix == ".zip" else folder
            assert len(load_dataset(str(target)).images)
            for i in range(count):
                path.write_bytes(mutate(whole, draw))
                try:
                    load_dataset(str(target), size=8)
                    read += 1
                except ConfigError as error:
                    assert str(error)
                except Exception as error:
                    raise AssertionError(f"{name}, mutation {i}: {type(error).__name__}: {error}") from error
    print(read, "read of", count * len(READERS))
"""


def check(count: int, seconds: int) -> None:
    found = run_bounded(f"exec({FUZZ!r}, globals())\nfuzz({count})", seconds=seconds)
    assert found.code == 0, found.output[-3000:]
    assert f"read of {16 * count}" in found.output
    assert found.peak < 700 * 2**20, f"{found.peak / 2**20:.0f} MiB"


def test_a_few_mutations_of_every_kind() -> None:
    check(40, 120)


@pytest.mark.slow
def test_two_thousand_mutations_of_every_kind() -> None:
    check(2000, 3000)
