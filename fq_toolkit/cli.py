"""``fq-toolkit``: one screen of help, and the way to each command.

Commands are imported when they run. Help, the version and a mistyped command come without torch, which takes
longer to import than all else together.
"""

import importlib
import importlib.util
import logging
import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fq_toolkit import __version__
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError, MissingExtraError, RunError
from fq_toolkit.training.reporting.out_of_memory import REMEDY, is_out_of_memory
from fq_toolkit.training.reporting.output import outlets

# Name of a trainer -> the module with its train_command, evaluate_command and what else it can do. By name,
# as importing one brings in torch and the libraries of its paper.
TRAINERS = {
    "fqgan": "fq_toolkit.fqgan.gan.commands",
    "ugatit": "fq_toolkit.fqgan.ugatit.commands",
    "optimus": "fq_toolkit.optimus.tasks.commands",
    "optimus-label-conditional": "fq_toolkit.optimus.tasks.labels.commands",
    "optimus-dialog": "fq_toolkit.optimus.tasks.dialog.commands",
    "prevalent": "fq_toolkit.prevalent.tasks.pretraining.commands",
    "speaker": "fq_toolkit.prevalent.tasks.speaker.commands",
    "r2r": "fq_toolkit.prevalent.tasks.r2r.commands",
    "ndh": "fq_toolkit.prevalent.tasks.ndh.commands",
    "hanna": "fq_toolkit.prevalent.tasks.hanna.commands",
}


class Command(NamedTuple):
    """A command: its usage, a one-line summary, and the function that takes the rest of the command line."""

    usage: str
    summary: str
    run: Callable[[list[str]], int]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; by default those it was called with.

    Returns:
        The exit status: 0, 1 when a run failed, 2 for a wrong command line or a missing package, 128 + n
        after signal n.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with outlets() as streams:
        logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=streams.err)
        status = run_command(words)
        streams.out.flush()
        lost = streams.out.error
        # A reader that closed the pipe (head, less) has seen enough, and a training run has written all to
        # its folder. Any other command ran for the sake of its output, and losing that is a failure.
        if lost is None or isinstance(lost, BrokenPipeError) or is_training(words):
            return status
        streams.err.write(f"fq-toolkit: the output could not be written: {lost}\n")
        return status or 1


def is_training(words: list[str]) -> bool:
    """Return whether a command line trains a model, so that its result is a folder and not its output."""
    return words[:1] == ["train"] and not {"--print-config", "--dry-run", "--help", "-h"} & set(words)


def run_command(words: list[str]) -> int:
    """Run one command line, report errors of the user in a sentence, and return the exit status."""
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            sys.stdout.write(help_screen())
            return 0
        if words[0] in ("-V", "--version"):
            sys.stdout.write(f"fq-toolkit {__version__}\n")
            return 0
        if words[0] not in COMMANDS:
            raise ConfigError(f"unknown command {words[0]!r}; {nearest(words[0], list(COMMANDS))}")
        return COMMANDS[words[0]].run(words[1:])
    except (ConfigError, MissingExtraError) as error:
        sys.stderr.write(f"fq-toolkit: {error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"fq-toolkit: {error}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):  # a fault of ours: its traceback belongs into the bug report
            raise
        sys.stderr.write(f"fq-toolkit: out of memory. {REMEDY} ({error})\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("fq-toolkit: interrupted\n")
        return 130  # 128 + SIGINT, as shells report it
    except SystemExit as leaving:  # tyro leaves this way after --help (0) and after a wrong option (2)
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def trainer_commands(name: str) -> ModuleType:
    """Import the module with the commands of a trainer.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in TRAINERS:
        raise ConfigError(f"unknown trainer {name!r}; {nearest(name, list(TRAINERS))}")
    return importlib.import_module(TRAINERS[name])


def run_train(words: list[str]) -> int:
    """Run ``train NAME [options]``."""
    if not words or words[0].startswith("-"):
        usage = (
            f"usage: fq-toolkit train {{{','.join(TRAINERS)}}} [options]; --help after the name lists them\n"
        )
        asked = words[:1] in (["-h"], ["--help"])
        (sys.stdout if asked else sys.stderr).write(usage)
        return 0 if asked else 2
    return int(trainer_commands(words[0]).train_command(words[1:]))


def on_a_run(command: str) -> Callable[[list[str]], int]:
    """Return a function that runs a command of the trainer that made a given run folder."""
    function = f"{command.replace('-', '_')}_command"

    def run(words: list[str]) -> int:
        from fq_toolkit.training.storage.run_folder import RunFolder  # lazy: it imports torch

        if words[:1] in (["-h"], ["--help"]):
            for name in TRAINERS:
                help_of = getattr(trainer_commands(name), function, None)
                if help_of is None:
                    continue
                sys.stdout.write(f"\nWith a run of `train {name}`:\n")
                with suppress(SystemExit):  # tyro leaves this way after --help, and there are more to show
                    help_of(Path("RUN"), ["--help"])
            return 0
        if not words or words[0].startswith("-"):
            raise ConfigError(f"{command} needs a run folder first: fq-toolkit {command} RUN [options]")
        folder = Path(words[0])
        trainer = RunFolder.open(folder).trainer()
        run_command = getattr(trainer_commands(trainer), function, None)
        if run_command is None:
            raise ConfigError(f"{folder} is a run of `{trainer}`, which has no `{command}`")
        return int(run_command(folder, words[1:]))

    return run


def run_score(words: list[str]) -> int:
    """Run ``score PREDICTIONS ANNOTATIONS --connectivity FOLDER``."""
    from fq_toolkit.prevalent.metrics.command import score_command  # lazy: it imports scipy

    return score_command(words)


def run_bench(words: list[str]) -> int:
    """Run ``bench ...`` as ``python -m benchmarks ...``, which is in the source tree but not in the wheel."""
    # An installed script does not search the current folder, as ``python -m`` would.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if (
        importlib.util.find_spec("benchmarks") is None
        or importlib.util.find_spec("benchmarks.__main__") is None
    ):
        raise RunError(
            "the benchmarks are part of the source tree, not of the installed package: "
            "run this command in a checkout of fq-toolkit with the extra 'bench' (pip install -e '.[bench]')"
        )
    sys.argv = ["python -m benchmarks", *words]
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    return 0


def run_env(words: list[str]) -> int:
    """Run ``env``: print the report that belongs into a bug report."""
    if words:
        if words[0] in ("-h", "--help"):
            sys.stdout.write(
                "usage: fq-toolkit env\nPrint versions, device and usable kernels, to paste into an issue.\n"
            )
            return 0
        raise ConfigError(f"env takes no options; got {' '.join(words)}")
    from fq_toolkit import environment  # lazy: it imports torch

    sys.stdout.write(environment.report().rstrip() + "\n")
    return 0


COMMANDS = {
    "train": Command("train NAME", "train a model; the names are below", run_train),
    "evaluate": Command(
        "evaluate RUN", "measure a run again and write evaluation.json", on_a_run("evaluate")
    ),
    "plot": Command("plot RUN", "draw curves.png again, also while the run goes on", on_a_run("plot")),
    "sample": Command("sample RUN", "new images or sentences from a run", on_a_run("sample")),
    "codebook": Command("codebook RUN", "pictures of which patches share a code", on_a_run("codebook")),
    "translate": Command("translate RUN", "a folder of images into the other domain", on_a_run("translate")),
    "reconstruct": Command(
        "reconstruct RUN", "sentences through the latent of a VAE and back", on_a_run("reconstruct")
    ),
    "interpolate": Command(
        "interpolate RUN", "sentences on the way from one to another", on_a_run("interpolate")
    ),
    "analogy": Command("analogy RUN", "what is to C as B is to A", on_a_run("analogy")),
    "play": Command("play RUN", "type sentences to a VAE: interpolate, analogy", on_a_run("play")),
    "classify": Command(
        "classify RUN", "sentences by label from latents, and how many labels it takes", on_a_run("classify")
    ),
    "plot-latents": Command(
        "plot-latents RUN", "latents of labelled sentences in the plane", on_a_run("plot-latents")
    ),
    "augment": Command(
        "augment RUN", "new paths with instructions of a trained speaker", on_a_run("augment")
    ),
    "navigate": Command(
        "navigate RUN", "follow one instruction step by step, and draw the way", on_a_run("navigate")
    ),
    "score": Command(
        "score PRED ANN", "official scores of navigation predictions: r2r, ndh, hanna", run_score
    ),
    "bench": Command("bench run", "speed and memory against the peers (source tree)", run_bench),
    "env": Command("env", "versions, device, usable kernels: paste it into an issue", run_env),
}


def help_screen() -> str:
    """Return one screen of help: the commands, the trainers, and what to type first."""
    lines = "\n".join(f"  {command.usage:<17} {command.summary}" for command in COMMANDS.values())
    return f"""fq-toolkit: quantized features for GANs, latents for language models, navigation agents

Commands (each explains its options with --help):
{lines}

Trainers, each with an embedded default that needs no data and a few minutes on two cores:
  fqgan, ugatit              GANs with feature quantization (FQ-GAN)
  optimus                    sentence VAE; --task label-conditional or dialog for the others
  prevalent, speaker         pretraining and instructions for navigation (PREVALENT)
  r2r, ndh, hanna            navigation agents

Start here:
  fq-toolkit train fqgan --fq regularize  digits, about two minutes on two cores; prints the run folder
  fq-toolkit train fqgan --resume RUN     go on after Ctrl-C, bit by bit; with --steps 2000 train longer
  fq-toolkit train optimus --dry-run      build everything, do two steps, write nothing
  fq-toolkit sample RUN                   new digits, or sentences
  accelerate launch -m fq_toolkit train fqgan   several processes or GPUs

A run folder holds config.json, metrics.csv, checkpoints/, curves.png, evaluation.json, pictures or a model.
"""
