"""Files of a few rows for each task of a sentence VAE, and options with which a run takes a second."""

from collections.abc import Iterable
from pathlib import Path

import torch

from fq_toolkit.cli import main
from fq_toolkit.training.storage.run_folder import RunFolder

TINY = """--steps 2 --layers 1 --width 16 --heads 2 --latent-size 4 --batch-size 4 --lr-warmup 1 --log-every 1
--checkpoint-every 1 --evaluate-every 0 --device cpu --max-length 12""".split()
VAE = ["--eval-sentences", "6", "--iw-samples", "2"]
# All different: the second time round the alphabet, what is heard is not what was seen.
ROWS = [
    f"the {'cat' if i % 2 else 'dog'} {'sees' if i < 26 else 'hears'} {n} ."
    for i, n in enumerate("abcdefghijklmnopqrstuvwxyz" * 2)
]
# task -> ending of its files, a row of them, more options
TASKS = {
    "vae": (".txt", "{text}", VAE),
    "label-conditional": (".tsv", "{label}\t{text}", ["--eval-rows", "4"]),
    "dialog": (".tsv", "what {label} {number} ?\t{text}", ["--eval-rows", "4", "--samples", "2"]),
}


def write(folder: Path, task: str) -> tuple[Path, Path]:
    """Write training and validation data; return both files."""
    ending, form, _ = TASKS[task]
    lines = [form.format(text=text, label=("good", "bad")[i % 2], number=i) for i, text in enumerate(ROWS)]
    files = folder / f"train{ending}", folder / f"valid{ending}"
    for file, rows in zip(files, (lines[:40], lines[40:]), strict=True):
        file.write_text("\n".join(rows) + "\n")
    return files


def train(folder: Path, task: str, more: Iterable[str] = ()) -> Path:
    """Train a tiny run on ``train``, measured on ``valid``, all in a folder; return the run."""
    data, valid = write(folder, task)
    files = ["--data", str(data), "--valid", str(valid), "--out", str(folder / "run")]
    assert main(["train", "optimus", "--task", task, *files, *TINY, *TASKS[task][2], *more]) == 0
    return folder / "run"


def assert_same_weights(*runs: Path) -> None:
    """Compare the models in the newest checkpoints of two runs bit by bit."""
    one, two = (RunFolder.open(run).checkpoints().load().state["task"]["vae"] for run in runs)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
