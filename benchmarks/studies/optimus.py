"""What keeps a latent alive, and where should it go in? ``python -m benchmarks.studies.optimus``.

Trains small sentence VAEs from scratch on image captions: four schedules of beta, three ways to inject the
latent, and the plain decoder as the reference. All arms of a seed share sentences, sizes, order and steps.
A run that has ended is in the results file and is not run again: the study can be stopped, and goes on when
called again. ``--case injection`` repeats the injections from smaller initial weights; ``--case grammar``
measures the default command by seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import machine, results
from benchmarks.studies.panels import Panel, diverged, draw
from benchmarks.studies.results import DIVERGED, Figures, Setting, read
from benchmarks.studies.runs import Stopped, exit_code, run_missing, setting_here
from benchmarks.studies.statistics import student_interval
from benchmarks.timing import rotation
from fq_toolkit.optimus.data.corpus import load_corpus
from fq_toolkit.optimus.data.tokenized import TokenizedTexts, tokenize_corpus
from fq_toolkit.optimus.model.decoding import evaluating
from fq_toolkit.optimus.model.losses import token_nll
from fq_toolkit.optimus.tasks.networks import build_vae
from fq_toolkit.optimus.tasks.sentence_task import data_order, learning_rate, make_optimizer
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig, preset
from fq_toolkit.optimus.tasks.vae.training import train
from fq_toolkit.training.errors import ConfigError, DivergedError
from fq_toolkit.training.reporting.progress import SilentReporter
from fq_toolkit.training.seeding import seed_everything

# What all runs share. Of the first ``limit`` training captions, those of more than ``max_length`` tokens are
# left out; so are those of the held-out ones.
BASE = OptimusConfig(
    preset="captions", limit=30_000, max_length=24, tokenizer="subword", vocab_size=4000,
    layers=2, width=128, heads=4, dropout=0.1, latent_size=32, batch_size=32, steps=1000,
    lr=1e-3, lr_warmup=0.1, n_cycle=2, autoencoder_warmup=0.0, free_bits=0.0,
    eval_sentences=500, iw_samples=20,
    checkpoint_every=0, evaluate_every=0, keep_checkpoints=1, log_every=100, device="cpu",
)  # fmt: skip
PLAIN = "plain GPT-2"
CYCLICAL = "cyclical + free bits"
# Arm -> the options by which it differs from BASE. The first group compares schedules, the second injections.
ARMS: dict[str, dict[str, object]] = {
    "constant beta 1": {"schedule": "constant"},
    "monotonic": {"schedule": "monotonic"},
    "cyclical": {},
    CYCLICAL: {"free_bits": 0.5},
    f"{CYCLICAL}, embedding": {"free_bits": 0.5, "mode": "embedding"},
    f"{CYCLICAL}, both": {"free_bits": 0.5, "mode": "both"},
    PLAIN: {},
}
# The injections again, from the release's weights to and from the latent: with those of BASE, what the
# embedding mode adds is at first far larger than the embeddings of tokens, which may be what it suffers from.
INJECTION_ARMS: dict[str, dict[str, object]] = {
    mode: {"free_bits": 0.5, "mode": mode, "init_std": 0.02} for mode in ("memory", "embedding", "both")
}
GRAMMAR_ARMS: dict[str, dict[str, object]] = {"fq-toolkit train optimus": {}}
METRICS = {
    "sentences": "sentences",
    "negative_elbo": "-ELBO",
    "kl": "KL",
    "mutual_information": "MI",
    "active_units": "AU",
    "reconstruction_from_mean": "reconstruction",
    "reconstruction_from_other": "reconstruction from another latent",
    "ppl_per_bpe_token": "PPL per BPE token",
    "ppl_per_word": "PPL per word",
}
ANALOGIES = {
    "accuracy": "analogies right",
    "changed": "factor changed",
    "kept": "others kept",
}
LAST = "PPL per word"
COLUMNS = (
    "analogies right", "factor changed", "others kept", "PPL per BPE token", LAST, "-ELBO", "KL",
    "MI", "AU", "reconstruction", "reconstruction from another latent",
)  # fmt: skip
_PANELS = (LAST, "KL", "MI", "AU")
_ANALOGIES = "analogies right"
_ROWS = 64
_SEEDS, _QUICK = 3, {"steps": 6, "eval_sentences": 20, "iw_samples": 2, "limit": 500}


def captions() -> tuple[str, str]:
    """Return the paths of the captions to train on and to measure with.

    Raises:
        ConfigError: when they are not there.
    """
    root = Path(os.environ.get("FQ_TOOLKIT_DATA") or machine.ROOT.parent / "shared" / "data") / "captions"
    paths = root / "train.txt", root / "valid.txt"
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: set FQ_TOOLKIT_DATA to the folder with captions/")
    return str(paths[0]), str(paths[1])


def arms_of(case: str) -> dict[str, dict[str, object]]:
    """Return the arms of a case, in the order of its table."""
    return {"captions": ARMS, "injection": INJECTION_ARMS, "grammar": GRAMMAR_ARMS}[case]


def run_config(arm: str, seed: int, *, quick: bool, case: str = "captions") -> OptimusConfig:
    """Return the options of one run, which differ only in the arm's own and the seed."""
    options = {**arms_of(case)[arm], **(_QUICK if quick else {}), "seed": seed}
    if case == "grammar":
        return dataclasses.replace(preset("grammar"), device="cpu", **options)  # type: ignore[arg-type]
    data, valid = captions()
    return dataclasses.replace(BASE, data=data, valid=valid, **options)  # type: ignore[arg-type]


def run_once(arm: str, config: OptimusConfig) -> dict[str, float]:
    """Train one arm with one seed; returns metric -> value, `LAST` last.

    Raises:
        Stopped: when a signal came.
    """
    if arm == PLAIN:
        return train_plain(config)
    folder = Path(tempfile.mkdtemp(prefix="study-optimus-"))
    try:
        result = train(config, out=folder / "run", reporter=SilentReporter())
    except DivergedError:
        return {DIVERGED: 1.0}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if result.signal is not None or result.evaluation is None:
        raise Stopped(result.signal or signal.SIGINT)
    figures = result.evaluation.figures
    said = {}
    if figures.analogies is not None:
        said = {name: float(getattr(figures.analogies, field)) for field, name in ANALOGIES.items()}
        said |= {f"{factor} right": hits for factor, hits in figures.analogies.by_factor.items()}
    return {**said, **{name: float(getattr(figures.language, field)) for field, name in METRICS.items()}}


def make_setting(*, quick: bool, case: str) -> Setting:
    """Return what all runs of this call share."""
    config = run_config(next(iter(arms_of(case))), 0, quick=quick, case=case)
    return setting_here(
        packages=("transformers", "tokenizers"),
        preset=f"{case}-quick" if quick else case,
        steps=config.steps,
        samples=config.eval_sentences,
        data="grammar" if case == "grammar" else "captions",
        options=sizes(config),
    )


def sizes(config: OptimusConfig) -> str:
    """Return what a reader of a row has to know of the networks and the sentences."""
    first = f", first {config.limit} sentences" if config.limit else ""
    return (
        f"{config.layers} layers x {config.width}, latent {config.latent_size}{first}, init {config.init_std}"
    )


def train_plain(config: OptimusConfig) -> dict[str, float]:
    """Train only the decoder, on what the VAEs are trained on, in the same order, for as many steps.

    Args:
        config: of the VAE whose decoder it is.

    Returns:
        Metric -> value on the held-out sentences.
    """
    seed_everything(config.seed)
    corpus = load_corpus(config.data, config.valid, limit=config.limit)
    vae = build_vae(config, corpus.train)
    decoder, tokenizers = vae.decoder, vae.tokenizers
    decoder.latent_injection.requires_grad_(False)  # without a latent it computes nothing
    data = tokenize_corpus(corpus.train, tokenizers, max_length=config.max_length)
    order = data_order(config, data, rank=0, world=1)
    optimizer = make_optimizer(decoder, config)
    decoder.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        nll(decoder, data, order.next()).mean().backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip)
        optimizer.step()
    every = max(1, len(corpus.valid) // config.eval_sentences)
    texts = corpus.valid[::every][: config.eval_sentences]
    held_out = tokenize_corpus(texts, tokenizers, max_length=config.max_length)
    kept = [t for t in texts if len(tokenize_corpus([t], tokenizers, max_length=config.max_length))]
    with evaluating(decoder):
        parts = torch.arange(len(held_out)).split(_ROWS)
        total = sum(float(nll(decoder, held_out, rows).double().sum()) for rows in parts)
    tokens, words = int(held_out.lengths().sum()), sum(len(text.split()) + 1 for text in kept)
    return {
        "sentences": float(len(held_out)),
        "-ELBO": total / len(held_out),  # exact here: there is no latent
        "PPL per BPE token": math.exp(total / tokens),
        "PPL per word": math.exp(total / words),
    }


def nll(decoder: torch.nn.Module, data: TokenizedTexts, rows: Tensor) -> Tensor:
    """Return ``-log p(x)`` of sentences, (B,)."""
    batch = data.batch(rows)
    logits = decoder(input_ids=batch.decoder_ids[:, :-1], attention_mask=batch.decoder_mask[:, :-1]).logits
    return token_nll(logits, batch.decoder_ids[:, 1:], batch.decoder_mask[:, 1:])


def cell(by_seed: Mapping[int, float]) -> str:
    """Return the mean over seeds and, with several, their standard deviation."""
    if not by_seed:
        return "–"
    found = student_interval(list(by_seed.values()))
    return f"{found.mean:.2f}" + (f" ± {found.sd:.2f}" if found.seeds > 1 else "")


def table(figures: Figures, arms: Sequence[str]) -> str:
    """Return arms by metrics as markdown: means over seeds, standard deviations, the number of seeds."""
    by_metric = {name: figures.by_arm(name) for name in COLUMNS if figures.by_arm(name)}
    lines = [f"| | {' | '.join(by_metric)} | seeds |", f"|---|{'---|' * (len(by_metric) + 1)}"]
    for arm in arms:
        seeds = len(figures.by_arm(LAST).get(arm, {}))
        if seeds:
            cells = [cell(by_arm.get(arm, {})) for by_arm in by_metric.values()]
            lines.append(f"| {arm} | {' | '.join(cells)} | {seeds} |")
    lines += diverged(figures)
    return "\n".join(lines)


def panels(figures: Figures) -> list[Panel]:
    """Return the metrics of the picture; analogies where the case has them."""
    return [Panel(metric) for metric in _PANELS + (_ANALOGIES,) * bool(figures.by_arm(_ANALOGIES))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.studies.optimus", description=__doc__)
    command.add_argument("--case", choices=("captions", "injection", "grammar"), default="captions")
    command.add_argument("--seeds", type=int, default=_SEEDS, help=f"seeds 0 to N-1 (default {_SEEDS})")
    command.add_argument("--quick", action="store_true", help="a minute: whether it works, no figures")
    command.add_argument("--threads", type=int, help="CPU threads")
    command.add_argument(
        "--report", action="store_true", help="no runs: table and picture of the results file"
    )
    command.add_argument("--results", type=Path, help="CSV; by default in benchmarks/results/")
    options = command.parse_args(arguments)
    console = Console()
    if options.threads:
        torch.set_num_threads(options.threads)
    runs = [
        (arm, seed)
        for seed in range(1 if options.quick else options.seeds)
        for arm in rotation(tuple(arms_of(options.case)), seed)
    ]

    def run(arm: str, seed: int) -> dict[str, float]:
        return run_once(arm, run_config(arm, seed, quick=options.quick, case=options.case))

    def study() -> None:
        setting = make_setting(quick=options.quick, case=options.case)
        run_missing(setting, runs, path, run, console, last=LAST)

    with tempfile.TemporaryDirectory() as scratch:
        name = f"study_optimus-{options.case}-{machine.machine_name('cpu')}.csv"
        path = options.results or (Path(scratch) if options.quick else results.DIRECTORY) / name
        code = 0 if options.report else exit_code(study, console)
        rows = read(path)
        if rows:
            figures = Figures(rows, rows[-1].setting)
            arms = tuple(arms_of(options.case))
            console.print(table(figures, arms), markup=False, highlight=False, soft_wrap=True)
            picture = path.with_suffix(".png")
            draw(figures, arms, panels(figures), picture, samples="held-out sentences")
    return code


if __name__ == "__main__":
    sys.exit(main())
