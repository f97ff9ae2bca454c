"""Every script in examples/ runs as a reader would run it, from anywhere, and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RUNS = {
    "own_discriminator.py": (["--steps", "5"], ["step    5", "perplexity  dead  restarted  nonfinite"]),
    "vq_tokenizer.py": (
        ["--steps", "20"],
        ["step   20", "tokens of one image: [", "error of four new images:"],
    ),
    "somebody_elses_discriminator.py": (
        [],
        ["blocks.1", "without the dictionaries: True", "moved the scores: True"],
    ),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_example_runs(name: str, tmp_path: Path) -> None:
    arguments, promised = RUNS[name]
    child = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    for text in promised:
        assert text in child.stdout
    assert not list(tmp_path.iterdir()), "an example left files behind"


def test_a_trainer_of_four_files_trains_resumes_and_is_measured(tmp_path: Path) -> None:
    def vqvae(*words: str) -> str:
        child = subprocess.run(
            [sys.executable, "-m", "examples.vqvae", *words],
            capture_output=True, text=True, cwd=EXAMPLES.parent, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert child.returncode == 0, child.stderr
        return child.stdout

    run = str(tmp_path / "run")
    assert "steps" in vqvae("train", "--help")
    said = vqvae("train", "--steps", "60", "--evaluate-every", "20", "--checkpoint-every", "30", "--out", run)
    assert "validation images" in said
    assert "every fifth of digits (360 items" in said
    errors = {which: vqvae("evaluate", run, "--checkpoint", which) for which in ("best", "last", "40")}
    assert errors["last"].startswith("step 60: error 0.0")
    assert errors["40"].startswith("step 40: ")
    assert vqvae("train", "--resume", run, "--steps", "70").count("70 steps") == 1
