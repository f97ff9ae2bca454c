"""The sentence VAE of a run, whichever task trained it, ready to encode and decode."""

from pathlib import Path

import torch

from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.runs import load_task
from fq_toolkit.optimus.tasks.sentence_task import MODEL
from fq_toolkit.optimus.tasks.vae.config import TRAINER
from fq_toolkit.optimus.tasks.vae.training import VAE_TRAINER
from fq_toolkit.training.config import read_json
from fq_toolkit.training.errors import ConfigError, RunError, require
from fq_toolkit.training.runs import SavedRun
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.run_folder import RunFolder

# The models of the other tasks hold the sentence VAE under this name.
_INSIDE = "base."


def load_model(path: Path, *, checkpoint: Which | None = None) -> SentenceVAE:
    """Read the sentence VAE of a run.

    Networks and tokenizers come from ``model/``, which is written when training ends or is stopped, and
    weights from the checkpoint that is asked for. A run of the VAE itself whose ``model/`` is not there yet,
    or damaged, is built anew, for which its data are needed.

    Args:
        path: the run folder.
        checkpoint: ``"best"``, ``"last"`` or a step; by default the model at the end of the run, or the last
            checkpoint where there is none yet.

    Raises:
        RunError: when it is no run folder, or its model is missing or damaged.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer, or its data are gone.
    """
    folder = RunFolder.open(path)
    trainer, options = read_json(folder.config)
    inside = str(trainer).startswith(f"{TRAINER}-")
    if trainer != TRAINER and not inside:
        raise ConfigError(f"{path} is a run of {trainer!r}, which trains no sentence VAE")
    if not (path / MODEL).is_dir():
        if inside:
            raise RunError(
                f"{path} is a run of {trainer!r}, whose sentence VAE is in its folder {MODEL} when training "
                "has ended or was stopped: stop the run or wait"
            )
        return load_task(VAE_TRAINER, path, checkpoint=checkpoint)[0].sentence_vae
    try:
        vae = SentenceVAE.from_pretrained(path / MODEL, device=_device(options.get("device")))
    except ValueError as error:
        if inside:
            raise RunError(str(error)) from error
        if checkpoint is None:
            raise RunError(f"{error}; --checkpoint last reads the newest checkpoint instead") from error
        return load_task(VAE_TRAINER, path, checkpoint=checkpoint)[0].sentence_vae
    if checkpoint is not None:
        step, saved = folder.load_checkpoint(checkpoint)
        run = SavedRun(folder, options, step, float(saved["seconds"]), saved["task"])
        with run.fitting():
            # Beside the sentence VAE, the models of other tasks have weights that nobody here needs.
            weights = run.state["vae"]
            if inside:
                weights = {
                    name.removeprefix(_INSIDE): value
                    for name, value in weights.items()
                    if name.startswith(_INSIDE)
                }
            vae.load_state_dict(weights)
    return vae.eval()


def _device(asked: object) -> torch.device:
    """Return where the model of a run belongs, without an Accelerator of its precision."""
    accelerate = require("accelerate", purpose="loading a run")
    cpu = asked == "cpu" or not torch.accelerator.is_available()
    device: torch.device = accelerate.PartialState(cpu=cpu).device
    return device
