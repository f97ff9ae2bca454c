"""A user's own images through the command line: found, trained on, sampled, measured, translated."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fq_toolkit import cli
from fq_toolkit.fqgan.gan.evaluation import Statistics
from fq_toolkit.fqgan.metrics.classifiers import Extracted
from tests.fqgan.data.image_data import pixels, write_image

SMALL = [
    "--steps", "2", "--channels", "4", "--latent-size", "8", "--batch-size", "8", "--num-codes", "8",
    "--eval-samples", "12", "--log-every", "1", "--checkpoint-every", "0", "--device", "cpu",
]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        write_image(tmp_path / "pets" / ("cats" if i % 2 else "dogs") / f"{i}.png", (20 + i, 18), seed=i)
    status, _, err = call(capsys, "train", "fqgan", *SMALL, "--data", tmp_path / "pets", "--dry-run")
    assert status == 2
    assert "the images have different sizes" in err
    words = [*SMALL, "--data", tmp_path / "pets", "--image-size", "16", "--flip", "--out", tmp_path / "run"]
    status, out, err = call(capsys, "train", "fqgan", *words)
    assert status == 0, err
    assert "image folder: 20 images 3x16x16, 2 classes" in err
    assert out.startswith("fid[data-cnn] ")
    status, out, err = call(capsys, "evaluate", tmp_path / "run", "--extractor", "random-cnn")
    assert status == 0, err
    assert out.startswith("step 2: fid[random-cnn] ")
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (record["extractor"], record["samples"], record["real_images"]) == ("random-cnn", 12, 20)
    assert record["accuracy"] is None
    status, _, err = call(capsys, "sample", tmp_path / "run", "--classes", "2")
    assert status == 2
    assert "classes [2] do not exist" in err
    assert call(capsys, "translate", tmp_path / "run", "x")[0] == 2


@pytest.mark.parametrize(
    ("size", "words", "message"),
    [
        (28, [], "images are (28, 28); expected square, 8, 16, 32, ... pixels: give --image-size"),
        (16, ["--image-size", "20"], "image_size is 20"),
        (16, ["--fq", "regularize", "--fq-layers", "0", "7"], "this discriminator has blocks 0 to 2"),
        (16, ["--extractor", "cifar-cnn"], "cifar-cnn looks at images of 3x32x32"),
        (16, ["--batch-size", "13"], "12 rows do not fill a batch of 13"),
    ],
)
def test_images_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, words: list[str], message: str
) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(0, 12, size, size), y=np.arange(12) % 3)
    out = ["--out", tmp_path / "run"]
    status, _, err = call(capsys, "train", "fqgan", *SMALL, "--data", tmp_path / "a.npz", *words, *out)
    assert status == 2
    assert message in err


def test_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(0, 20, 8, 8), y=np.arange(20) % 2)
    run = tmp_path / "run"
    words = [*SMALL, "--data", tmp_path / "a.npz", "--no-conditional", "--fq-layers", "0", "--out", run]
    status, out, err = call(capsys, "train", "fqgan", *words)
    assert status == 0, err
    assert "class accuracy" not in out
    assert "is[data-cnn] " in out


def test_translation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("trainA", 4), ("trainB", 4), ("testA", 4), ("testB", 4)):
        for i in range(count):
            write_image(tmp_path / "data" / part / f"{i}.png", (20, 18), seed=i + len(part))
    words = [
        "--data", tmp_path / "data", "--steps", "2", "--width", "4", "--batch-size", "2", "--device", "cpu",
        "--num-codes", "4", "4", "--evaluate-every", "0", "--out", tmp_path / "run",
    ]  # fmt: skip
    status, out, err = call(capsys, "train", "ugatit", *words)
    assert status == 0, err
    assert "unpaired folders: trainA 4, trainB 4, testA 4, testB 4" in err
    assert "A to B: kid[random-cnn] " in out
    status, out, err = call(capsys, "translate", tmp_path / "run", tmp_path / "data" / "testA", "--to", "B")
    assert status == 0, err
    assert out == f"4 image(s) in {tmp_path / 'run' / 'translated-to-B'}\n"
    status, out, _ = call(capsys, "evaluate", tmp_path / "run")
    assert status == 0
    assert "B to A: kid[random-cnn] " in out
    status, _, err = call(capsys, "codebook", tmp_path / "run")
    assert status == 2
    assert "a run of `ugatit`, which has no `codebook`" in err


class Processes:
    """What several processes look like to those that merge: `gather_object` returns what all have."""

    def __init__(self, number: int) -> None:
        self.num_processes = number


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_measure_what_one_would(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    features, logits = torch.randn(50, 6), torch.randn(50, 4)
    whole = Statistics(6)
    whole.update(Extracted(features, logits))
    parts = [Statistics(6, rows=-(-50 // world)) for _ in range(world)]  # each keeps its share
    for rank, part in enumerate(parts):
        part.update(Extracted(features[rank::world], logits[rank::world]))
    sent: list[object] = []

    def note(mine: list[object]) -> list[object]:
        sent.extend(mine)
        return mine

    for name in ("moments", "rows", "scores"):
        # All processes call at once, and each gets what all have: first see what they send.
        sent.clear()
        for part in parts:
            monkeypatch.setattr("accelerate.utils.gather_object", note)
            getattr(copy.deepcopy(part), name).merge_processes(Processes(world))
        monkeypatch.setattr("accelerate.utils.gather_object", lambda _: sent)
        getattr(parts[0], name).merge_processes(Processes(world))
    torch.testing.assert_close(parts[0].moments.mean, whole.moments.mean)
    torch.testing.assert_close(parts[0].moments.covariance(), whole.moments.covariance())
    assert parts[0].inception_score() == pytest.approx(whole.inception_score(), rel=1e-12)
    merged, alone = parts[0].rows.tensor(), whole.rows.tensor()
    assert torch.equal(merged[merged[:, 0].argsort()], alone[alone[:, 0].argsort()])
