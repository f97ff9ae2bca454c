"""The command line, from the outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fq_toolkit
from fq_toolkit import cli
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.training import errors
from fq_toolkit.training.storage.checkpoints import Checkpoints

TINY = [
    "--fq", "regularize",
    "--steps", "3", "--channels", "4", "--latent-size", "8", "--batch-size", "8", "--num-codes", "8",
    "--eval-samples", "20", "--log-every", "1", "--checkpoint-every", "2", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def brief_extractor(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FQ_TOOLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(extractors, "EPOCHS", 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", "fqgan", *TINY, "--out", str(run)]) == 0
    return run


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_is_one_screen_that_names_every_command(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    status, out, _ = call(capsys, *words)
    assert status == 0
    assert len(out.splitlines()) <= 36
    assert max(map(len, out.splitlines())) <= 110
    for name in cli.COMMANDS:
        assert f"\n  {name}" in out


HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "matplotlib",
    "scipy",
    "sklearn",
    "accelerate",
    "tyro",
    "rich",
    "triton",
}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["-V"], ["train", "--help"], ["nothing"]])
def test_what_needs_no_model_loads_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from fq_toolkit.cli import main; main({words}); print(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in child.stderr.split()}
    assert not loaded & HEAVY


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert call(capsys, flag) == (0, f"fq-toolkit {fq_toolkit.__version__}\n", "")


@pytest.mark.parametrize("command", list(cli.COMMANDS)[:4])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    words = ["train", "fqgan", "--help"] if command == "train" else [command, "--help"]
    status, out, _ = call(capsys, *words)
    assert status == 0
    assert f"fq-toolkit {command}" in out


def test_train_help_lists_options_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "train", "fqgan", "--help")
    for option in (
        "--resume",
        "--dry-run",
        "--print-config",
        "--config",
        "--steps",
        "--seed",
        "--fq",
        "--preset",
        "--out",
    ):
        assert option in out
    assert "{none,regularize,straight_through}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'"),
        (["train", "fqgam"], "unknown trainer 'fqgam'; did you mean 'fqgan'"),
        (["train", "fqgan", "--preset", "digit"], "unknown preset 'digit'; did you mean 'digits'"),
        (["train", "fqgan", "--decay", "2"], "decay is 2.0; expected 0 <= decay < 1"),
        (["train", "fqgan", "--config", "absent.json"], "cannot read the configuration absent.json"),
        (["train", "fqgan", "--config", "a", "--resume", "b"], "give one of them"),
        (["sample"], "sample needs a run folder first"),
        (["env", "now"], "env takes no options"),
    ],
)
def test_a_wrong_command_line_is_one_clear_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = call(capsys, *words)
    assert status == 2
    assert out == ""
    assert err.startswith("fq-toolkit: ")
    assert message in err
    assert "Traceback" not in err


def test_a_wrong_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "train", "fqgan", "--stepz", "3")
    assert status == 2
    assert "--steps" in out + err


def test_a_trainer_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "train")[0] == 2
    assert call(capsys, "train", "--help")[0] == 0


def test_config_goes_out_and_comes_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = call(
        capsys, "train", "fqgan", "--steps", 7, "--fq", "none", "--fq-layers", 1, 2, "--print-config"
    )
    assert status == 0
    path = tmp_path / "config.json"
    path.write_text(out)
    _, again, _ = call(capsys, "train", "fqgan", "--config", path, "--print-config")
    assert again == out
    _, over, _ = call(capsys, "train", "fqgan", "--config", path, "--steps", 9, "--print-config")
    assert json.loads(over) == json.loads(out) | {"steps": 9}
    path.write_text(json.dumps(json.loads(out) | {"stepz": 1}))
    status, _, err = call(capsys, "train", "fqgan", "--config", path)
    assert (status, "unknown option 'stepz'; did you mean 'steps'" in err) == (2, True)


def test_an_unwritable_run_folder_is_found_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "train", "fqgan", *TINY, "--out", tmp_path / "file" / "run")
    assert status == 1
    assert "cannot create the run folder" in err


def test_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(capsys, "train", "fqgan", *TINY, "--dry-run")
    assert status == 0
    assert "Nothing was written" in out
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_beginning_to_end(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "samples.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = call(
        capsys, "sample", finished, "--rows", 2, "--classes", 3, 7, "--out", tmp_path / "s.png"
    )
    assert (status, out) == (0, f"{tmp_path / 's.png'} (step 3)\n")
    status, out, _ = call(capsys, "evaluate", finished)
    assert status == 0
    assert out.startswith("step 3: fid[digits-cnn] ")
    assert "real-vs-real floor" in out
    (finished / "curves.png").unlink()
    assert call(capsys, "plot", finished)[0] == 0
    assert (finished / "curves.png").exists()
    status, out, err = call(capsys, "train", "fqgan", "--resume", finished, "--steps", 4)
    assert status == 0
    assert "step 4/4" in err
    assert f"run folder: {finished}" in out
    status, _, err = call(capsys, "train", "fqgan", "--resume", finished, "--channels", 8)
    assert status == 2
    assert "channels: 4 -> 8" in err


def test_a_truncated_checkpoint_is_one_clear_sentence(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    checkpoints = finished / "checkpoints"
    newest = checkpoints / f"step_{Checkpoints(checkpoints).steps()[-1]:08d}.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:100])
    try:
        for words in (["sample", finished], ["train", "fqgan", "--resume", finished]):
            status, _, err = call(capsys, *words)
            assert status == 1
            assert "is damaged: 100 bytes instead of" in err
    finally:
        newest.write_bytes(whole)


def test_a_folder_that_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("sample", "evaluate", "plot"):
        status, _, err = call(capsys, command, tmp_path)
        assert status == 1
        assert "is not a run folder" in err
    (tmp_path / "config.json").write_text('{"trainer": "other"}')
    status, _, err = call(capsys, "sample", tmp_path)
    assert (status, "unknown trainer 'other'" in err) == (2, True)


@pytest.mark.parametrize("package", ["tyro", "accelerate", "sklearn"])
def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = errors.importlib.import_module

    def without(name: str, *rest: object):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(errors.importlib, "import_module", without)
    status, _, err = call(capsys, "train", "fqgan", *TINY, "--out", tmp_path / "run")
    assert status == 2
    assert f"needs {package}, which is not installed" in err
    assert "pip install 'fq-toolkit[train]'" in err


def test_env_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "env")
    assert status == 0
    assert "torch" in out


def test_bench_needs_the_source_tree(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p or ".") / "benchmarks").is_dir()])
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    status, _, err = call(capsys, "bench", "run")
    assert status == 1
    assert "source tree" in err


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """A real process, a real signal: exit status 130, a checkpoint, and the command that goes on."""
    run = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "fq_toolkit",
        "train",
        "fqgan",
        *TINY,
        "--steps",
        "100000",
        "--out",
        str(run),
    ]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    metrics = run / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert f"fq-toolkit train fqgan --resume {run}" in out
    assert Checkpoints(run / "checkpoints").load().step >= 3


def test_help_of_a_command_on_runs_shows_every_trainer_that_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = call(capsys, "sample", "--help")
    assert status == 0
    for trainer in ("fqgan", "optimus", "optimus-dialog"):
        assert f"With a run of `train {trainer}`:" in out
    assert "--truncation" in out  # an option of the images
    assert "--temperature" in out  # an option of the sentences
