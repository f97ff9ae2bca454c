"""Finished and unfinished runs: a sentence VAE back from its folder, and a new measurement."""

import dataclasses
from pathlib import Path

import torch

from fq_toolkit.optimus.data.corpus import Corpus, load_corpus
from fq_toolkit.optimus.data.tokenized import tokenize_corpus
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.another_file import (
    OtherEvaluation,
    check_source,
    evaluation_path,
    file_set,
    measured_line,
    tell_leaks,
    tell_skipped,
)
from fq_toolkit.optimus.tasks.vae.config import TRAINER, OptimusConfig
from fq_toolkit.optimus.tasks.vae.evaluation import Evaluation, Evaluator, write_evaluation
from fq_toolkit.optimus.tasks.vae.training import MODEL, OptimusTask, build_vae, held_out_set
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import MISFITS, CheckpointError, ConfigError, RunError, require
from fq_toolkit.training.storage.checkpoints import Checkpoint
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import check_data


def load_model(path: Path, *, step: int | None = None) -> SentenceVAE:
    """Read the model of a run, ready to encode and decode.

    Args:
        path: the run folder.
        step: of which checkpoint, for which the run's data are needed again; by default ``model/``, which is
            written when training ends or is stopped, else the newest checkpoint.

    Raises:
        RunError: when it is no run folder, or its model is damaged.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer, or its data are gone.
    """
    folder = RunFolder.open(path)
    trainer = folder.trainer()
    if trainer.startswith(f"{TRAINER}-"):
        return _within(trainer, path, step)
    config = load_config(OptimusConfig, folder.config, trainer=TRAINER)
    device = _device(config)
    if step is None and (path / MODEL).is_dir():
        try:
            return SentenceVAE.from_pretrained(path / MODEL, device=device)
        except ValueError as error:
            raise RunError(f"{error}; --step reads a checkpoint instead") from error
    checkpoint = folder.load_checkpoint(step)
    return _from_checkpoint(config, _corpus(config), checkpoint, path).to(device).eval()


def _within(trainer: str, path: Path, step: int | None) -> SentenceVAE:
    """The sentence VAE inside the model of another task."""
    if step is not None or not (path / MODEL).is_dir():
        raise RunError(
            f"{path} is a run of {trainer!r}, whose sentence VAE is in its folder {MODEL} when training has "
            "ended or was stopped: leave --step out, and stop the run or wait"
        )
    try:
        return SentenceVAE.from_pretrained(path / MODEL)
    except ValueError as error:
        raise RunError(str(error)) from error


def evaluate_run(
    path: Path,
    *,
    step: int | None = None,
    sentences: int | None = None,
    iw_samples: int | None = None,
    analogies: int | None = None,
) -> Evaluation:
    """Measure a run again and write ``evaluation.json``.

    Args:
        path: the run folder.
        step: which checkpoint; the newest by default.
        sentences: to measure with; by default as the run's options say, like the next two.
        iw_samples: draws per sentence of the importance-weighted likelihood.
        analogies: scored ones, on the grammar.

    Raises:
        RunError, CheckpointError, ConfigError: as :func:`load_model`, and when the sentences to measure with
            are not those that the run was measured on.
    """
    folder = RunFolder.open(path)
    config = _measuring(folder, sentences=sentences, iw_samples=iw_samples, analogies=analogies)
    checkpoint = folder.load_checkpoint(step)
    corpus = _corpus(config)
    vae = _from_checkpoint(config, corpus, checkpoint, path).to(_device(config))
    measured_on = held_out_set(config, corpus.valid)
    check_measured(folder.checkpoints(), checkpoint.step, measured_on)
    result = Evaluator(config, corpus)(vae)
    write_evaluation(
        folder.evaluation,
        config,
        result,
        step=checkpoint.step,
        seconds=checkpoint.state["seconds"],
        measured_on=measured_on,
    )
    return result


def evaluate_run_on(
    path: Path,
    source: str,
    *,
    step: int | None = None,
    text_key: str | None = None,
    sentences: int | None = None,
    iw_samples: int | None = None,
) -> OtherEvaluation:
    """Measure a run on another file, and write the figures into a file of their own.

    Args:
        path: the run folder.
        source: the file, in any format that a run can be trained on.
        step: which checkpoint; the newest by default.
        text_key: where the text is in its JSON lines; by default as in the run, like the next two.
        sentences: to measure with.
        iw_samples: draws per sentence of the importance-weighted likelihood.

    Raises:
        RunError, CheckpointError: as :func:`load_model`.
        ConfigError: the same, and when the file holds too few sentences that the model can read.
    """
    check_source(source)
    folder = RunFolder.open(path)
    config = _measuring(folder, sentences=sentences, iw_samples=iw_samples)
    corpus = load_corpus(
        config.data,
        config.valid,
        text_key=config.text_key,
        limit=config.limit,
        measure_on=source,
        measure_text_key=text_key,
    )
    checkpoint = folder.load_checkpoint(step)
    vae = _from_checkpoint(config, corpus, checkpoint, path).to(_device(config))
    tell_skipped(source, corpus.skipped)
    trained_on = tell_leaks(source, corpus.train, corpus.valid, noun="sentences")
    measured_on = file_set(source, corpus.valid)
    target = evaluation_path(folder, measured_on["valid"])
    try:
        figures = Evaluator(config, corpus)(vae)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    write_evaluation(
        target,
        config,
        figures,
        step=checkpoint.step,
        seconds=checkpoint.state["seconds"],
        measured_on=measured_on,
        trained_on=trained_on,
    )
    line = measured_line(target, measured_on["valid"], step=checkpoint.step)
    return OtherEvaluation(checkpoint.step, figures, line)


def _measuring(
    folder: RunFolder,
    *,
    sentences: int | None = None,
    iw_samples: int | None = None,
    analogies: int | None = None,
) -> OptimusConfig:
    """Return the options of a run, with other numbers of what is measured where they are given."""
    config = load_config(OptimusConfig, folder.config, trainer=TRAINER)
    return dataclasses.replace(
        config,
        eval_sentences=config.eval_sentences if sentences is None else sentences,
        iw_samples=config.iw_samples if iw_samples is None else iw_samples,
        eval_analogies=config.eval_analogies if analogies is None else analogies,
    )


def _device(config: OptimusConfig) -> torch.device:
    """Where the models of a run belong: an Accelerator would refuse a second run of another precision."""
    accelerate = require("accelerate", purpose="loading a run")
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return accelerate.PartialState(cpu=cpu).device


def _corpus(config: OptimusConfig) -> Corpus:
    return load_corpus(config.data, config.valid, text_key=config.text_key, limit=config.limit)


def _from_checkpoint(
    config: OptimusConfig, corpus: Corpus, checkpoint: Checkpoint, path: Path
) -> SentenceVAE:
    vae = build_vae(config, corpus.train)
    data = tokenize_corpus(corpus.train, vae.tokenizers, max_length=config.max_length)
    check_data(checkpoint.state["task"], data.fingerprint(), what=OptimusTask.trained_on, source=config.data)
    try:
        vae.load_state_dict(checkpoint.state["task"]["vae"])
    except MISFITS as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {path} does not fit: {error}. "
            f"Are the sentences of {config.data} still those of the run?"
        ) from error
    return vae
