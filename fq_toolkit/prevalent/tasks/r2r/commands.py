"""The commands for R2R runs: options are read here, the work is done elsewhere."""

from pathlib import Path
from typing import Literal

from fq_toolkit.prevalent.tasks.commands import evaluate_navigator, run_navigate_command
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig, preset
from fq_toolkit.training.errors import require
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train an agent that follows instructions: R2R.

With no options: instructions in generated buildings, a minute or two on one core, scored in unseen buildings.
Start from pretraining with --pretrained RUN of `train prevalent`, add instructions with --augmented FILE of
`augment`, explore the unseen buildings before the test with --speaker RUN of `train speaker`.
Real data: --preset r2r --data FOLDER_OF_R2R_FILES --connectivity FOLDER --features FILE.
The run folder holds predictions in the official submission format, model/, curves.png and evaluation.json."""


def train_command(arguments: list[str]) -> int:
    """Run ``train r2r``."""
    from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER

    def defaults(words: list[str]) -> R2RConfig:
        return preset(first_look(words, "preset").preset or "mini")

    return run_train_command(R2R_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        split: str | None = None,
        annotations: Path | None = None,
        features: Path | None = None,
        checkpoint: str = "last",
        decoding: Literal["greedy", "sample", "beam"] = "greedy",
        beam_width: int = 5,
        seed: int = 0,
    ) -> int:
        """Measure a run again: TL NE SR OSR SPL CLS nDTW SDTW; writes predictions and evaluation.json.

        Args:
            split: Measure on another split of the data folder, test for example; the figures go to
                evaluation-STEM-HASH.json and what is submitted to predictions-STEM-HASH.json.
            annotations: The same for another annotation file.
            features: File of view features for these; by default those of the run.
            checkpoint: best, last, or the step of one.
            decoding: The likeliest action, a drawn one, or the likeliest path that beam search finds.
            beam_width: Paths that beam search keeps.
            seed: Of drawn actions.
        """
        from fq_toolkit.prevalent.tasks.r2r.evaluation import Decoder
        from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER

        decoder = Decoder(decoding, beam_width, seed)
        decoder.check()
        return evaluate_navigator(R2R_TRAINER, run, checkpoint, split, annotations, features, decoder=decoder)

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def navigate_command(run: Path, arguments: list[str]) -> int:
    """Run ``navigate RUN``."""
    from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER

    return run_navigate_command(R2R_TRAINER, run, arguments)


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER

    return run_plot_command(R2R_TRAINER, run, arguments)
