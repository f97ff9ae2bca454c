"""``train optimus``, which is ``train optimus --task vae``."""

from fq_toolkit.optimus.tasks.command_line import suit_the_data
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig, preset
from fq_toolkit.training.train_command import first_look, run_train_command

TRAIN_HELP = """Train a sentence VAE (Optimus): an encoder, a latent, and a decoder that reads it.

With no options: the embedded grammar, a small BERT and GPT-2 from scratch. At its end it prints ten
interpolations, ten analogies and the share of analogies on held-out combinations that are right. The run
folder then holds config.json, metrics.csv, checkpoints/, model/, examples.txt, curves.png and
evaluation.json. Ctrl-C saves; --resume goes on bit by bit. --preset captions --data FILE trains on any file
of one sentence a line; --init RUN goes on from a trained model, on other sentences; --encoder
bert-base-cased --decoder gpt2 starts from pretrained networks. --task trains something else than the VAE
itself."""


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus``.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    from transformers.utils import logging

    from fq_toolkit.optimus.tasks.vae.training import OPTIMUS_TRAINER

    logging.disable_progress_bar()  # of saving a model, which takes no time here
    return run_train_command(OPTIMUS_TRAINER, arguments, defaults=_defaults, description=TRAIN_HELP)


def _defaults(arguments: list[str]) -> OptimusConfig:
    return suit_the_data(preset(first_look(arguments, "preset").preset or "grammar"), arguments)
