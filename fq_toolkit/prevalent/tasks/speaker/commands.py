"""The commands for speaker runs, and `augment`: options are read here, the work is done elsewhere."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fq_toolkit.prevalent.tasks.another_split import Another
from fq_toolkit.prevalent.tasks.commands import run_preset_command
from fq_toolkit.prevalent.tasks.r2r.data import load_r2r_data
from fq_toolkit.prevalent.tasks.speaker.augment import augment_records, training_world
from fq_toolkit.prevalent.tasks.speaker.config import preset
from fq_toolkit.prevalent.tasks.speaker.runs import evaluate_another, evaluate_run, load_speaker
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError, RunError, require
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.train_command import run_plot_command

TRAIN_HELP = """Train a speaker: it looks at a path and writes the instruction for it.

With no options: generated worlds, about a minute on two cores. The weights with the best BLEU are kept in
speaker/ of the run folder; instructions.txt shows what it says. Then: fq-toolkit augment RUN --out more.json.
Real data: --data FOLDER_OF_R2R_FILES --connectivity FOLDER --features FILE --preset r2r."""


def train_command(arguments: list[str]) -> int:
    """Run ``train speaker``."""
    return run_preset_command(SPEAKER_TRAINER, preset, arguments, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        split: str | None = None,
        annotations: Path | None = None,
        features: Path | None = None,
        checkpoint: str = "best",
    ) -> int:
        """Measure the BLEU of a speaker on the validation splits again; writes evaluation.json.

        Args:
            split: Measure on another split of the data folder; the figures go to evaluation-STEM-HASH.json
                and what the speaker says to instructions-STEM-HASH.json.
            annotations: The same for another annotation file.
            features: File of view features for these; by default those of the run.
            checkpoint: best, last, or the step of one.
        """
        another = Another(split, annotations, features)
        asked = another.given
        trained = load_speaker(run, checkpoint=parse_checkpoint(checkpoint))
        said = evaluate_another(trained, another) if asked else evaluate_run(trained)
        sys.stdout.write(said)
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def augment_command(run: Path, arguments: list[str]) -> int:
    """Run ``augment RUN --out FILE``."""
    tyro = require("tyro", purpose="the command line")

    def augment(
        out: Path,
        checkpoint: str = "best",
        paths: int | Literal["all"] = 1000,
        instructions: int = 1,
        sample: bool = False,
        seed: int = 0,
        min_length: float = 5.0,
        min_edges: int = 4,
        max_edges: int = 6,
    ) -> int:
        """Sample shortest paths in the training scans and let the speaker of a run describe them.

        No path of a validation split is among them, nor a scan that only validation splits have.

        Args:
            out: The JSON file in the format of R2R, for `train r2r --augmented`.
            checkpoint: Of the speaker: best, last, or the step of one.
            paths: How many different ones, or all that there are.
            instructions: Per path; from the second on the words are drawn.
            sample: Draw the words of the first instruction too, instead of the likeliest.
            seed: Of paths and words.
            min_length: Metres of a path.
            min_edges: Of a path.
            max_edges: Of a path.
        """
        wanted = None if paths == "all" else paths
        if min(1 if wanted is None else wanted, instructions) < 1 or not 0 < min_edges <= max_edges:
            raise ConfigError(
                "paths and instructions must be at least 1 and 0 < min_edges <= max_edges, got "
                f"{paths}, {instructions}, {min_edges}, {max_edges}"
            )
        if seed < 0:
            raise ConfigError(f"seed is {seed}; expected 0 or more")
        # Before minutes of work.
        if out.is_dir() or not out.parent.is_dir():
            raise RunError(f"cannot write {out}: " + ("it is a folder" if out.is_dir() else "no such folder"))
        trained = load_speaker(run, checkpoint=parse_checkpoint(checkpoint))
        data = trained.data
        if trained.config.limit is not None:
            # What is held out is held out, also what a trial did not measure.
            data = load_r2r_data(replace(trained.config.data_options(), limit=None))
        records = augment_records(
            training_world(data.train.world, data.train.items),
            data.train.features,
            trained.speaker,
            wanted,
            seed,
            held_out=[item for split in data.validation.values() for item in split.items],
            instructions=instructions,
            sample=sample,
            min_length=min_length,
            min_edges=min_edges,
            max_edges=max_edges,
        )
        write_atomic(out, (json.dumps(records, indent=1) + "\n").encode())
        noise = "; features synthesised" if data.train.synthesised else ""
        few = f" (all that there are; {wanted} were asked for)" if len(records) < (wanted or 0) else ""
        sys.stdout.write(
            f"{out}: {len(records)} paths{few}, {len(records) * instructions} instructions{noise}\n"
        )
        return 0

    return int(tyro.cli(augment, args=arguments, prog="fq-toolkit augment RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(SPEAKER_TRAINER, run, arguments)
