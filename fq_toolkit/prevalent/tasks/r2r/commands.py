"""The commands for R2R runs: those of all agents, and other ways to choose actions."""

from pathlib import Path
from typing import Literal

from fq_toolkit.prevalent.tasks.another_split import Another
from fq_toolkit.prevalent.tasks.commands import NavigatorCommands, evaluate_navigator
from fq_toolkit.prevalent.tasks.r2r.config import preset
from fq_toolkit.prevalent.tasks.r2r.evaluation import Decoder
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER
from fq_toolkit.training.errors import require

TRAIN_HELP = """Train an agent that follows instructions: R2R.

With no options: instructions in generated buildings, a minute or two on one core, scored in unseen buildings.
Start from pretraining with --pretrained RUN of `train prevalent`, add instructions with --augmented FILE of
`augment`, explore the unseen buildings before the test with --speaker RUN of `train speaker`.
Real data: --preset r2r --data FOLDER_OF_R2R_FILES --connectivity FOLDER --features FILE.
The run folder holds predictions in the official submission format, model/, curves.png and evaluation.json."""

_COMMANDS = NavigatorCommands(R2R_TRAINER, preset, TRAIN_HELP)
train_command = _COMMANDS.train
navigate_command = _COMMANDS.navigate
plot_command = _COMMANDS.plot


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
        decoder = Decoder(decoding, beam_width, seed)
        decoder.check()
        another = Another(split, annotations, features)
        return evaluate_navigator(R2R_TRAINER, run, checkpoint, another, decoder=decoder)

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))
