"""The commands of U-GAT-IT runs: they read options and call what does the work."""

import sys
from pathlib import Path
from typing import Literal

from fq_toolkit.fqgan.gan.runs import checkpoint_title
from fq_toolkit.fqgan.ugatit.config import UGATITConfig, preset
from fq_toolkit.fqgan.ugatit.runs import evaluate_translators, load_translators
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER
from fq_toolkit.fqgan.ugatit.translate import translate_folder
from fq_toolkit.training.errors import require
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train U-GAT-IT: unpaired image translation with quantized features in the discriminators.

With no options: digits to their negatives and back at 16x16, a tiny network. With --preset u-gat-it or
u-gat-it-light and --data FOLDER (trainA, trainB, testA, testB): the networks and settings of the paper."""

DEFAULT = "u-gat-it-tiny"


def train_command(arguments: list[str]) -> int:
    """Run ``train ugatit``."""

    def defaults(words: list[str]) -> UGATITConfig:
        return preset(first_look(words, "preset").preset or DEFAULT)

    return run_train_command(UGATIT_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def translate_command(run: Path, arguments: list[str]) -> int:
    """Run ``translate RUN SOURCE``."""
    tyro = require("tyro", purpose="the command line")
    positional = tyro.conf.Positional

    def translate(
        source: positional[Path],  # type: ignore[valid-type]
        to: Literal["A", "B"] = "B",
        out: Path | None = None,
        checkpoint: str = "last",
        skip_damaged: bool = False,
        nested: bool = False,
    ) -> int:
        """Translate a picture, or all pictures of a folder or zip archive, with a run of U-GAT-IT.

        Args:
            source: A picture, or a folder or zip archive of pictures.
            to: The domain to translate to, from the other one.
            out: Folder of the results; by default translated-to-B (or -A) in the run folder.
            checkpoint: best (the lowest mean KID of both directions), last, or a step.
            skip_damaged: Leave out pictures that cannot be read, and count and name them.
            nested: Take all pictures below the folder, however deep; the results keep its folders.
        """
        target = out or run / f"translated-to-{to}"
        count = translate_folder(
            load_translators(run, checkpoint=parse_checkpoint(checkpoint)),
            source,
            target,
            to=to,
            skip_damaged=skip_damaged,
            nested=nested,
        )
        sys.stdout.write(f"{count} image(s) in {target}\n")
        return 0

    return int(tyro.cli(translate, args=arguments, prog="fq-toolkit translate RUN"))


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(checkpoint: str = "last", extractor: str | None = None) -> int:
        """Measure a run: kernel and Frechet distance in both directions; writes evaluation.json.

        Args:
            checkpoint: best (the lowest mean KID of both directions), last, or a step.
            extractor: What measures images, for example inception:FILE; as in the run by default.
        """
        trained = load_translators(run, checkpoint=parse_checkpoint(checkpoint))
        evaluation = evaluate_translators(trained, extractor=extractor)
        chosen = checkpoint_title(trained.step, trained.checkpoint)
        sys.stdout.write(f"{chosen}:\n{evaluation}\n{measured_line(trained.folder)}")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(UGATIT_TRAINER, run, arguments)
